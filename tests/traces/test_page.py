"""The page of a run as a person uses it: with a mouse, a keyboard, a screen reader, on a phone, at night."""

from __future__ import annotations

import io
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.async_api import Locator, Page, expect

from backends.scripted import ScriptedBackend
from ets_agent import ETS, CandidatesWeighed, ETSConfig, GuidedAnswer, Result, StepStarted, Warned
from ets_agent.traces import TraceWriter
from tests.traces.conftest import Show
from tests.traces.runs import DIAGNOSTICS, result, rollout, step

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "</script <img src=x onerror=alert(3)>",
    "</SCRIPT/",
    "<!--<script>alert(3)//",
    "<img src=x onerror=alert(4)>",
    '"><svg onload=alert(5)>',
    "{{script}} {{data}} ${alert(6)} javascript:alert(7) \u2028\u2029 \\u003cscript>",
]
TWO_STEPS = [
    step(
        1,
        ["12 + 4 = 16\n", "12 + 4 = 18\n", "12 - 4 = 8\n", "12 + 4 = 16\n"],
        [0.3, 0.24, 0.16, 0.3],
        rollouts=(
            (
                rollout("12 + 4 = 16\n16 * 2 = 32\n#### 32", log_ratio=0.125),
                rollout("12 + 4 = 16\nno", answer=None, reward=None, finish_reason="length", log_ratio=-1.5),
            ),
            (rollout("12 + 4 = 18\n#### 18"), rollout("12 + 4 = 18\n#### 18")),
            (rollout("12 - 4 = 8\n#### 8", reward=-np.inf), rollout("12 - 4 = 8\n#### 9")),
            (
                rollout("12 + 4 = 16\n16 * 2 = 32\n#### 32", log_ratio=0.125),
                rollout("12 + 4 = 16\nno", answer=None, reward=None, finish_reason="length", log_ratio=-1.5),
            ),
        ),
        dropped=1,
        diagnostics=DIAGNOSTICS.model_copy(
            update={"verdict": "the proposal is far off", "num_ratios": 8, "num_judged": 7}
        ),
    ),
    step(
        2,
        ["16 * 2 = 32\n#### 32", "no"],
        [0.5, 0.5],
        finished=(True, True),
        fallback="equal_rewards",
        num_rollouts=0,
        rollouts=((rollout("12 + 4 = 16\n16 * 2 = 32\n#### 32"),), (rollout("12 + 4 = 16\nno"),)),
    ),
]
RUN = result(
    "12 + 4 = 16\n16 * 2 = 32\n#### 32",
    TWO_STEPS,
    answer="32",
    warnings=["the judge was slow"],
    proposal="tiny/qwen3-small",
    log_normalizer=-1.25,
    config=ETSConfig(kl_coef=0.25),
)


def candidates(page: Page, number: int) -> Locator:
    return page.get_by_role("list", name=f"Candidates of step {number}").get_by_role("button", expanded=False)


def many(count: int) -> Result:
    weights = np.linspace(1, 3, count) / np.linspace(1, 3, count).sum()
    texts = [
        f"candidate {number} has a text of its own and a length that fills a line or two" for number in range(count)
    ]
    return result(texts[5], [step(1, texts, weights.tolist(), chosen=5, rollouts=((rollout("a"),) * 4,) * count)])


async def test_the_head_tells_question_answer_and_cost(show: Show) -> None:
    page = await show(
        RUN, prompt=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
    )
    await expect(page).to_have_title("How many? – a guided run")
    question, answer = page.get_by_role("region", name="Question"), page.get_by_role("region", name="Answer")
    assert re.sub(r"\s+", " ", await question.inner_text()) == "QUESTION system Be brief. user How many?"
    await expect(answer).to_contain_text("32")
    await expect(answer).to_contain_text("reward 0.75 by self_consistency · confidence 0.00 · finished")
    cost = page.get_by_role("region", name="Model and cost")
    for told in ("tiny/qwen3", "tiny/qwen3-small", "1,000", "900 as rollouts", "1.50 s", str(2**48), "−1.25"):
        await expect(cost).to_contain_text(told)
    await expect(page.get_by_role("region", name="A warning")).to_contain_text("the judge was slow")
    await cost.get_by_text("Settings").click()
    setting = cost.locator("dl.list > div", has_text="kl_coef").first
    await expect(setting).to_contain_text("0.25")
    await expect(setting).to_contain_text("λ: small trusts the reward")


async def test_the_path_leads_from_start_to_end(show: Show) -> None:
    page = await show(RUN)
    blocks = page.get_by_role("region", name="Response").get_by_role("link")
    assert await blocks.locator(".text").all_text_contents() == ["12 + 4 = 16\n", "16 * 2 = 32\n#### 32"]
    assert await page.locator(".path-candidate .text").all_text_contents() == ["12 + 4 = 16\n", "16 * 2 = 32\n#### 32"]
    assert await page.get_by_text("chosen", exact=True).count() == 2
    await expect(page.locator(".end")).to_have_text("Answer 32 · finished")
    await blocks.nth(1).locator(".text").click()
    await expect(page).to_have_url(re.compile("#step-2$"))
    trunk = await page.evaluate("""() => {
        const tree = document.querySelector(".tree"), line = getComputedStyle(tree, "::before");
        return [parseFloat(line.top), parseFloat(line.bottom), tree.getBoundingClientRect().height];
    }""")
    assert trunk[0] + trunk[1] < 40 < trunk[2]


async def test_a_step_tells_what_its_weights_are_worth(show: Show) -> None:
    page = await show(RUN)
    first, second = (page.get_by_role("region", name=f"Step {number}", exact=True) for number in (1, 2))
    await expect(first).to_contain_text("4 candidates, 3 different · 2 rollouts each · effective sample size 3.8 of 4")
    await expect(first).to_contain_text("the proposal is far off")
    await expect(first).to_contain_text("1 rollout without a verdict, left out of the estimates.")
    await expect(second).to_contain_text("All rewards were equal, so the weights are uniform")
    await first.get_by_text("How far to trust the weights").click()
    await expect(first.get_by_text("Selection error")).to_be_visible()
    await expect(first).to_contain_text("unknown")
    carry = first.locator("dl.list > div", has_text="Rollouts that carry the weight")
    await expect(carry).to_contain_text("6.5 of 7")


async def test_identical_candidates_are_one_with_their_common_weight(show: Show) -> None:
    page = await show(RUN)
    rows = candidates(page, 1)
    assert await rows.locator(".text").all_text_contents() == ["12 + 4 = 16\n", "12 + 4 = 18\n", "12 - 4 = 8\n"]
    await expect(rows.nth(0)).to_contain_text("60.0 %")
    await expect(rows.nth(0)).to_contain_text("× 2 identical")
    await expect(rows.nth(0).locator(".energy")).to_have_text("log-energy −1.20 ± 0.25")
    await expect(candidates(page, 2).nth(0).locator(".energy")).to_contain_text("exact")


async def test_a_click_opens_the_rollouts_and_another_closes_them(show: Show) -> None:
    page = await show(RUN)
    row = page.locator(".row").first
    await row.click()
    await expect(row).to_have_attribute("aria-expanded", "true")
    panel = page.locator(f"#{await row.get_attribute('aria-controls')}")
    await expect(panel.get_by_role("heading")).to_have_text("2 rollouts, shared by 2 identical candidates")
    first, second = await panel.get_by_role("listitem").all()
    told = {
        first: ["answer32", "reward0.5", "log ρ0.13", "log p−7.25", "endfinished"],
        second: ["answernone", "rewardno verdict", "log ρ−1.50", "log p−7.25", "endtoken limit"],
    }
    for entry, facts in told.items():
        assert await entry.locator("dl > div").all_text_contents() == facts
    await expect(first.locator(".before")).to_contain_text("12 + 4 = 16")
    await expect(first.locator(".beyond")).to_contain_text("16 * 2 = 32\n#### 32")
    await row.click()
    await expect(row).to_have_attribute("aria-expanded", "false")
    await expect(panel).to_be_hidden()


async def test_what_a_rollout_adds_is_set_apart(show: Show) -> None:
    page = await show(RUN)
    await page.locator(".row").first.click()
    before, beyond = page.locator(".before").first, page.locator(".beyond").first
    look = "node => [getComputedStyle(node).fontStyle, getComputedStyle(node).color]"
    styles = [await part.evaluate(look) for part in (before, beyond)]
    assert styles[0][0] == "italic"
    assert styles[1][0] == "normal"
    assert styles[0][1] != styles[1][1]


async def test_identical_rollouts_are_one_with_their_number(show: Show) -> None:
    page = await show(RUN)
    await candidates(page, 1).nth(1).click()
    entries = page.locator(".rollouts:visible").get_by_role("listitem")
    await expect(entries).to_have_count(1)
    await expect(entries).to_contain_text("2 times")


@pytest.mark.parametrize("key", ["Enter", "Space"])
async def test_the_keyboard_opens_the_rollouts(show: Show, key: str) -> None:
    page = await show(RUN)
    rows = page.locator(".row")
    await rows.nth(0).focus()
    await page.keyboard.press("ArrowDown")
    await expect(rows.nth(1)).to_be_focused()
    await page.keyboard.press("End")
    await expect(rows.nth(2)).to_be_focused()
    await page.keyboard.press("ArrowDown")
    await expect(rows.nth(2)).to_be_focused()
    await page.keyboard.press("Home")
    await page.keyboard.press(key)
    await expect(rows.nth(0)).to_have_attribute("aria-expanded", "true")
    await expect(page.locator(".rollouts li").first).to_be_visible()


async def test_everything_is_reached_by_tab_and_shows_the_focus(show: Show) -> None:
    page = await show(RUN)
    reached = []
    for _ in range(40):
        await page.keyboard.press("Tab")
        place = await page.evaluate("""() => {
            const node = document.activeElement, style = getComputedStyle(node);
            return [node.tagName, style.outlineStyle, parseFloat(style.outlineWidth)];
        }""")
        if place[0] == "BODY":
            break
        assert place[1] == "solid"
        assert place[2] >= 2
        reached.append(place[0])
    assert reached == [
        *("SUMMARY", "A", "A", "SUMMARY"),
        *("SUMMARY", "BUTTON", "BUTTON", "BUTTON", "SUMMARY", "BUTTON", "BUTTON"),
    ]


async def test_a_screen_reader_hears_what_the_layout_shows(show: Show) -> None:
    page = await show(RUN)
    tree = await page.locator("main").aria_snapshot()
    for heading, level in [
        ("A guided run", 1),
        ("Question", 2),
        ("Answer", 2),
        ("Response", 2),
        ("Steps", 2),
        ("Step 1", 3),
    ]:
        assert f'heading "{heading}" [level={level}]' in tree
    assert 'link "step 1: 12 + 4 = 16"' in tree
    assert 'list "Candidates of step 1"' in tree
    name = "chosen, weight 60.0 % 12 + 4 = 16 , × 2 identical , answers: 32 log-energy −1.20 ± 0.25"
    names = re.findall(r'button "(.*)"', tree)
    assert names[0] == name
    assert names[1].startswith("weight 24.0 % 12 + 4 = 18")
    assert await page.locator("html").get_attribute("lang") == "en"
    levels = await page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(node => +node.tagName[1])")
    assert levels[0] == 1
    assert all(deeper <= before + 1 for before, deeper in pairwise(levels))


@pytest.mark.parametrize("text", HOSTILE)
async def test_hostile_text_is_shown_and_does_nothing(show: Show, text: str) -> None:
    parts = rollout(text + text, answer=text)
    run = result(
        text,
        [step(1, [text, text + "2"], [0.5, 0.5], rollouts=((parts,), (parts,)))],
        answer=text,
        warnings=[text],
        model=text,
        proposal=text,
        config=ETSConfig(stop=text),
    )
    page = await show(run, prompt=[{"role": text, "content": text}])
    await page.get_by_text("Settings").click()
    await page.locator(".row").first.click()
    await expect(page.locator(".beyond").first).to_have_text(f" the rollout adds {text}")
    for place in (".asked", ".found", ".warnings li", ".block .text", ".row .text", ".about-rollout strong", ".before"):
        assert text in (await page.locator(place).first.text_content() or ""), place
    assert await page.locator("main :is(script, img, svg, iframe, style, link)").count() == 0
    assert await page.locator("script").count() == 2


async def test_the_policy_stops_what_is_smuggled_in(show: Show, browser: Any, tmp_path: Path) -> None:
    """Should text ever become markup, the browser still runs nothing of it and loads nothing for it."""
    await show(RUN)  # writes the page
    target = tmp_path / "smuggled.html"
    markup = "<script>window.owned = 1</script><img src='http://127.0.0.1:9/x' onerror='window.owned = 2'>"
    target.write_text((tmp_path / "run.html").read_text().replace("<main", markup + "<main"))
    page = await browser.new_page()
    failures: list[str | None] = []
    page.on("requestfailed", lambda request: failures.append(request.failure))
    await page.goto(target.as_uri())
    await page.locator(".row").first.click()
    assert await page.evaluate("window.owned") is None
    assert failures == ["csp"]
    await page.close()


async def test_a_thousand_candidates_are_usable_at_once(show: Show, heap_at_rest: None) -> None:
    page = await show(many(1000))
    ready = []
    for _ in range(3):  # The best of three: the machine may be busy with something else.
        ready.append(await page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"))
        if ready[-1] < 2000:
            break
        await page.reload()
    assert min(ready) < 2000
    rows = page.locator(".row")
    assert await rows.count() == 30
    await expect(rows.nth(0)).to_contain_text("candidate 5 has")
    await expect(rows.nth(1)).to_contain_text("candidate 999 has")
    await page.get_by_role("button", name="Show 970 more of step 1").press("Enter")
    await expect(rows).to_have_count(1000)
    await expect(rows.nth(30)).to_be_focused()
    await rows.nth(999).click()
    await expect(page.locator(".rollouts:visible")).to_have_count(1)


async def test_texts_that_repeat_are_stored_once(show: Show, tmp_path: Path) -> None:
    await show(many(1000))
    assert (tmp_path / "run.html").stat().st_size < (tmp_path / "run.jsonl").stat().st_size
    text = "an uncommon beginning and a good deal of text"
    shared = tuple(rollout(f"{text} {number}") for number in range(4))
    again = step(1, [text] * 50, [0.02] * 50, rollouts=(shared,) * 50)
    await show(result(text, [again]))
    assert (tmp_path / "run.html").read_text().count(text) <= 3  # as a candidate, before rollouts, in the response


CONTRAST = """() => {
    const rgba = (text) => { const v = text.match(/[\\d.]+/g).map(Number); return v.length > 3 ? v : [...v, 1]; };
    const light = ([r, g, b]) => {
        const f = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b);
    };
    const behind = (node) => {
        for (; node; node = node.parentElement) {
            const color = rgba(getComputedStyle(node).backgroundColor);
            if (color[3] > 0) return color;
        }
    };
    const found = [], walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest(".unseen")) continue;
        const [one, two] = [light(rgba(getComputedStyle(node).color)), light(behind(node))];
        found.push([(Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05), walker.currentNode.data]);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_all_text_has_enough_contrast(show: Show, scheme: Any) -> None:
    page = await show(RUN, color_scheme=scheme)
    for part in (".row", ".diagnostics > summary", ".settings > summary", ".reading > summary"):
        await page.locator(part).first.click()
    await page.locator(".row").nth(1).hover()
    found = await page.evaluate(CONTRAST)
    assert len(found) > 50
    assert [entry for entry in found if entry[0] < 4.5] == []
    paper = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    shade = sum(int(part) for part in re.findall(r"\d+", paper)[:3]) / 3
    assert shade > 200 if scheme == "light" else shade < 60


async def pixels(page: Page) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(await page.screenshot(full_page=True))).convert("RGB")).astype(int)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize(
    ("weights", "full", "scale"),
    [
        ([[0.1, 0.4, 0.3, 0.15, 0.05, 0.0], [0.9, 0.1]], 1.0, "100 %"),
        ([[0.04] * 25, [0.08] * 10 + [0.02] * 10], 0.1, "10 %"),
        ([[0.04] * 25, [0.2] * 5], 1.0, "100 %"),
    ],
)
async def test_bars_are_as_long_as_weights_are_large_on_one_scale(
    show: Show, weights: list[list[float]], full: float, scale: str, width: int, scheme: Any
) -> None:
    def texts(count: int) -> list[str]:
        return [f"{place:02d}" for place in range(count)]

    steps = [
        step(number, texts(len(own)), own, log_energies=(0.0,) * len(own)) for number, own in enumerate(weights, 1)
    ]
    page = await show(result("0000", steps), width=width, color_scheme=scheme)
    picture = await pixels(page)
    rows = await page.locator(".row").all()
    shown = [[own[0], *sorted(own[1:], reverse=True)] for own in weights]
    for row, weight in zip(rows, [weight for own in shown for weight in own], strict=True):
        box = await row.locator(".track").bounding_box()
        assert box is not None
        middle = picture[round(box["y"] + box["height"] / 2)]
        line = middle[round(box["x"]) : round(box["x"] + box["width"])]
        track = line[-4]  # No weight here fills its bar.
        filled = (np.abs(line - track).sum(axis=1) > 60).sum()
        assert filled == pytest.approx(box["width"] * weight / full, abs=2)
    if width > 1000:
        assert await page.locator(".scale").all_inner_texts() == [f"0\n{scale}"] * len(weights)


async def test_a_row_shows_that_it_opens(show: Show) -> None:
    page = await show(RUN)
    row = page.locator(".row").first
    mark = "getComputedStyle(document.querySelector('.row .chevron'), '::before').content"
    assert await page.evaluate(mark) == '"▸"'
    await expect(row.locator(".chevron")).to_have_attribute("aria-hidden", "true")
    await row.click()
    assert await page.evaluate(mark) == '"▾"'


async def test_the_page_explains_its_words_on_demand(show: Show) -> None:
    page = await show(RUN)
    reading = page.locator(".reading")
    await expect(reading.locator("dl")).to_be_hidden()
    await reading.get_by_text("How to read this page").click()
    told = await reading.locator("dt").all_inner_texts()
    assert told == ["Candidate", "Rollout", "log Ê", "Weight", "Effective sample size", "Confidence"]
    await expect(reading).to_contain_text("in nats")


async def test_the_confidence_is_the_one_that_agents_are_told(show: Show) -> None:
    one, two = rollout("a #### 1", share=0.75), rollout("a #### 2", share=0.25)
    run = result("a #### 1", [step(1, ["a", "b"], [0.6, 0.4], rollouts=((one, two), (two,)))])
    told = GuidedAnswer.of(run, trace_id="7f").confidence
    assert told == pytest.approx(0.45)
    answer = (await show(run)).get_by_role("region", name="Answer")
    await expect(answer).to_contain_text("reward 0.75 by self_consistency · confidence 0.45 · finished")
    await expect(answer).to_contain_text("the share of weight behind this answer, averaged over the steps")


async def test_an_error_that_says_nothing_is_not_shown(show: Show) -> None:
    errors = (0.25, 1.0, 1.01, 2708.4, 0.3, None, 0.0)
    groups = [(rollout("a"),)] * 4 + [(rollout("a", reward=0.0), rollout("b", reward=None))] + [(rollout("a"),)]
    none = (rollout("z", reward=0.0),)
    run = result(
        "a",
        [
            step(
                1,
                list("abcdefg"),
                [1 / 7] * 7,
                log_energies=(0.0,) * 7,
                log_energy_errors=errors,
                rollouts=(*groups, none),
            )
        ],
        log_normalizer=-1.25,
        log_normalizer_error=30.0,
    )
    page = await show(run)
    assert await page.locator(".row .energy").all_text_contents() == [
        f"log-energy 0.00{told}" for told in (" ± 0.25", " ± 1.00", *[", error unknown"] * 3, "", " ± 0.00")
    ]
    await expect(page.get_by_role("region", name="Model and cost")).to_contain_text("−1.25, error unknown")


@pytest.mark.parametrize("width", [320, 400, 700, 1200])
async def test_nothing_overlaps_or_sticks_out(show: Show, width: int) -> None:
    long = "a" * 200 + " and" * 20
    texts = [long, "short", "\n", ""]
    steps = [
        *TWO_STEPS,
        step(
            3,
            texts,
            [0.4, 0.3, 0.2, 0.1],
            rollouts=((rollout(long * 2, answer=long), rollout(long)),) * 4,
            chains=(0, 0, 1, 1),
        ),
    ]
    run = result(RUN.text + long, steps, answer=long, model="m" * 80, warnings=[long])
    page = await show(run, width=width, prompt=long)
    for row in await page.locator(".row").all():
        await row.click()
    assert await page.evaluate("document.documentElement.scrollWidth") == width
    crossed = await page.evaluate("""() => {
        const boxes = (selector, root = document) => [...root.querySelectorAll(selector)]
            .filter((node) => node.checkVisibility() && !node.closest(".unseen"))
            .map((node) => [node.className, node.getBoundingClientRect()]);
        const cross = (list) => list.flatMap(([name, a], i) => list.slice(i + 1).filter(([, b]) =>
            Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
            Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1).map(([other]) => [name, other]));
        const found = cross(boxes(".head > *, .path > *, .step-head, .row, .rollouts, .end"));
        for (const row of document.querySelectorAll(".row")) found.push(...cross(boxes(":scope > *", row)));
        const out = boxes("main *").filter(([, box]) => box.right > innerWidth + 1 || box.left < -1);
        return [...found, ...out.map(([name]) => name)];
    }""")
    assert crossed == []
    picture = await pixels(page)
    drawn = (np.abs(picture - picture[0, 0]).sum(axis=2) > 60).any(axis=1)  # lines with anything on them
    assert drawn.mean() > 0.5
    assert len(np.unique(picture @ [1, 256, 65536])) > 50


async def test_blank_candidates_can_be_seen(show: Show) -> None:
    page = await show(result("\n", [step(1, ["\n", "", "\t "], [0.5, 0.3, 0.2])]))
    assert await page.locator(".row .text").all_inner_texts() == ["\\n", "(empty)", "\\t "]


async def test_with_several_chains_the_path_is_that_of_the_answer(show: Show) -> None:
    first = step(1, ["a", "b"], [0.7, 0.3], chains=(0, 1), kept=(0, 1), chosen=0)
    second = step(2, ["c", "d", "e"], [0.2, 0.1, 0.7], chains=(0, 0, 1), kept=(0, 2), chosen=2, finished=(True,) * 3)
    page = await show(result("be", [first, second]))
    assert await page.locator(".block .text").all_text_contents() == ["b", "e"]
    assert await page.locator(".path-candidate .text").all_text_contents() == ["b", "e"]
    ahead = candidates(page, 1).nth(1)
    await expect(ahead).to_contain_text("ahead for now")
    await expect(ahead).to_contain_text("of chain 1")
    await expect(ahead).to_contain_text("goes on")
    await expect(page.get_by_text("goes on as chain")).to_have_count(0)
    await expect(page.locator(".hint").last).to_contain_text(
        "Thick twigs are candidates from which other chains go on."
    )
    await expect(page.get_by_role("region", name="Step 2", exact=True)).to_contain_text("2 chains")


async def test_a_chain_that_goes_on_from_another_one_says_so(show: Show) -> None:
    first = step(1, ["a", "b"], [0.7, 0.3], chains=(0, 1), kept=(0, 0), chosen=0, resampled=True)
    last = step(2, ["c", "d"], [0.5, 0.5], chains=(0, 1), kept=(0, 1), finished=(True,) * 2)
    page = await show(result("ac", [first, last]))
    await expect(candidates(page, 1).nth(0)).to_contain_text("goes on as chain 1, 2")
    await expect(page.get_by_text("goes on as chain")).to_have_count(1)


async def test_a_file_that_ends_early_says_so(show: Show, tmp_path: Path) -> None:
    file = tmp_path / "part.jsonl"
    with TraceWriter(file, prompt="How many?") as writer:
        writer.write(StepStarted(step=1, num_steps=4, text=""))
        writer.write(Warned(step=1, message="the judge was slow"))
        writer.write(CandidatesWeighed(trace=TWO_STEPS[0]))
        writer.write(StepStarted(step=2, num_steps=4, text="12 + 4 = 16\n"))
    page = await show(file)
    await expect(page.get_by_role("region", name="Answer")).to_contain_text(
        "The run was not finished when this file ends. Step 2 of 4 had begun."
    )
    await expect(page.get_by_role("region", name="Response so far")).to_contain_text("12 + 4 = 16")
    await expect(page.get_by_role("region", name="A warning")).to_contain_text("the judge was slow")
    await expect(page.locator(".end")).to_contain_text("the run was not finished")
    await expect(candidates(page, 1)).to_have_count(3)


async def test_a_file_of_a_header_alone_has_a_page(show: Show, tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "part.jsonl", prompt="How many?"):
        pass
    page = await show(tmp_path / "part.jsonl")
    await expect(page.get_by_role("region", name="Answer")).to_contain_text("The run was not finished")
    await expect(page.get_by_text("How many?")).to_be_visible()


async def test_what_a_rollout_had_to_complete_is_marked(show: Show) -> None:
    run = result("12 + 4 = 16\nand so 32", TWO_STEPS[:1], finish_reason="timeout", answer=None, reward=None)
    page = await show(run)
    await expect(page.locator(".rest")).to_have_text("from a rollout: and so 32")
    answer = page.get_by_role("region", name="Answer")
    await expect(answer).to_contain_text("reads no final answer")
    await expect(answer).to_contain_text("no verdict by self_consistency · confidence 0.00 · cut short by the timeout")


async def test_a_long_question_is_folded(show: Show) -> None:
    page = await show(RUN, prompt="long words " * 1000)
    question = page.get_by_role("region", name="Question")
    await expect(question.locator(".asked")).to_be_hidden()
    await question.get_by_text("11,000 characters").click()
    await expect(question.locator(".asked")).to_be_visible()


async def test_many_steps_begin_with_few_candidates(show: Show) -> None:
    texts = [f"{number} " for number in range(10)]
    page = await show(result("0 " * 300, [step(number, texts, [0.1] * 10) for number in range(1, 301)]))
    assert await page.locator(".row").count() == 300 * 4
    await page.locator(".block").last.locator(".text").click()
    await expect(page.get_by_role("heading", name="Step 300", exact=True)).to_be_in_viewport()
    await page.get_by_role("button", name="Show 6 more of step 300").click()
    await expect(page.get_by_role("list", name="Candidates of step 300").locator(".row")).to_have_count(10)


async def test_motion_is_left_out_where_that_is_wished(show: Show) -> None:
    scroll = "getComputedStyle(document.documentElement).scrollBehavior"
    assert await (await show(RUN, reduced_motion="reduce")).evaluate(scroll) == "auto"
    assert await (await show(RUN, reduced_motion="no-preference")).evaluate(scroll) == "smooth"


async def test_a_run_of_a_model_has_a_page(show: Show) -> None:
    script = {"12 + 4 = 16\n16 * 2 = 32\n#### 32": 3.0, "12 + 4 = 18\n#### 18": 1.0}
    async with ETS(ScriptedBackend(script), num_steps=8, max_tokens=16, num_chains=3) as ets:
        run = await ets.complete("How many?", seed=1)
    for trace in run.steps:
        assert 1 <= trace.diagnostics.rollout_ess <= trace.diagnostics.num_judged + 1e-9
    page = await show(run)
    assert "".join(await page.locator(".block .text").all_text_contents()) == run.text
    assert await page.locator(".step").count() == len(run.steps)
