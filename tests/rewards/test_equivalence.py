from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backends import Completion
from rewards import (
    MathAnswer,
    Reward,
    RewardError,
    RewardTimeoutError,
    SelfConsistency,
    equivalence,
    equivalence_keys,
)
from rewards.shared_workers import PATIENCE, SECONDS, Allowance
from rewards.workers import DEFAULT_SIZE, Workers


@pytest.mark.parametrize(
    "answers",
    [
        ["1/2", "0.5", r"\frac12", r"50\%", "50%", ".50", r"\dfrac{2}{4}", "{0.5}", "$0.5$", r"\frac{\sqrt{4}}{4}"],
        ["1,234", "1234.0", r"1{,}234", r"\$1,234", "1234 dollars", r"1234\text{ cm}", "x = 1234", r"1\,234"],
        [r"\sqrt{8}", r"2\sqrt2", "2^{3/2}", "2*sqrt(2)", r"\sqrt{2}+\sqrt2", r"\sqrt 8"],
        ["3pi", r"3\pi", "3π", r"\pi\cdot 3", r"6\pi/2"],
        ["2x+3", "3 + 2x", r"2\left(x+\frac32\right)", "y = 2x + 3", r"3+x\cdot 2"],
        ["x^2-1", "(x-1)(x+1)", "(1+x)(x-1)"],
        ["1,-2", "-2, 1", r"\{1, -2\}", r"-2 \text{ and } 1"],
        [r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"],
        [r"x \le 3", r"3 \ge x", r"(-\infty, 3]", "x ≤ 3"],
        [r"x \in [-2,7]", "[-2,7]", r"\left[-2, 7\right]", r"-2 \le x \le 7"],
        ["2x+3y=6", "4x + 6y - 12 = 0", "6 - 2x = 3y"],
        ["6 - 5i", "-5i+6", "6-5 i", "(2-i)(3.4-0.8i)"],
        ["i^2", "-1"],
        ["(x-1)(x+1), 2x", "2x, x^2-1", "x^2-1, x+x"],
        [r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix} 1 \\ 4/2 \end{bmatrix}"],
        [r"0.\overline{3}", "1/3", r"\frac{2}{6}"],
        ["no solution", "No  Solution", r"\text{no solution}."],
        ["(C)", "C", "c", r"\text{(C)}"],
        ["2(3)", "6", "(2)(3)", r"2\cdot 3"],
        ["10^{50}", "1" + "0" * 50],
        [r"90^\circ", "90", "90°", "90 degrees"],
        ["1" * 10_000, "0" + "1" * 10_000 + ".0"],
        ["2 1/2", r"1\frac{3}{2}", "2.5", "5/2 cups"],
        [r"1/2\%", "0.005", "0.5 percent"],
        ["2^{1.5}", r"2\sqrt2"],
        [r"5\text{ cm}", "5 cm", "5 cm^2", r"5\mbox{ cm}^2", "5"],
        ["x=2,y=3", "y=3, x=2"],
        ["1,234/2", "617"],
        [r"\log_2(8)", "3", r"\frac{\ln 8}{\ln 2}"],
    ],
    ids=lambda answers: answers[0][:20],
)
async def test_equal_values_have_equal_keys(answers: list[str]) -> None:
    keys = await equivalence_keys(answers)
    assert set(keys) == {keys[0]}, dict(zip(answers, keys, strict=True))
    assert keys[0]


async def test_different_values_have_different_keys() -> None:
    answers = [
        "0", "1", "-1", "0.3333", "1/3", "50", "0.5", "9:00", "9", "11_6", "11", r"11_{8}", "x", "y", "2x", "x^2",
        r"\sqrt2", "1.4142", "1.41421356237", r"\pi", "3.14159265", "(1,2]", "[1,2)", "[1,2]", "(1,2)", "(2,1)", "1,2",
        "1,2,3", "x<3", r"x\le 3", "x>3", "x=y+1", "x=y-1", "x+y=2", "x+y<2", "x+y>2", "even", "odd", "east", "seat",
        "i", "1+i", "3y", "3x", r"|3x|", "x-y", "y-x", "5 5", r"\infty", r"-\infty", "7 am", "7 pm",
        r"\begin{pmatrix}1\\2\end{pmatrix}", r"\sqrt2x+\sqrt2, x", r"\sqrt3x+\sqrt3, x",
        r"\begin{pmatrix}1&2\end{pmatrix}", r"\sin x", r"\cos x", "1" * 600, "1" * 601, "", r"\emptyset", "10^{30}",
        "10^{30}+1",
    ]  # fmt: skip
    keys = await equivalence_keys(answers)
    assert len(set(keys)) == len(answers), sorted(zip(keys, answers, strict=True))


@pytest.mark.parametrize(
    "answers",
    [
        ["2 1/2 cups", "1/2 cup", "2"],
        [r"1/2\%", "1/2", "50"],
        [r"2 \text{ hours } 15 \text{ minutes}", r"2 \text{ hours } 45 \text{ minutes}", "2"],
        ["3 hours 5 minutes", "3 hours 5 seconds", "3"],
        ["5 PM", "5 AM", "5"],
        ["3 million", "3 dozen", "3"],
        ["x=2,y=3", "x=3,y=2"],
        ["e^{-50}", "e^{-100}", "0"],
        ["|n|+1", "n+1"],
        ["5m", "5g", "5"],
        ["1,234/5", r"\{1,46.8\}"],
    ],
    ids=lambda answers: answers[0],
)
async def test_answers_that_only_look_alike_have_different_keys(answers: list[str]) -> None:
    keys = await equivalence_keys(answers)
    assert len(set(keys)) == len(answers), dict(zip(answers, keys, strict=True))


@pytest.mark.parametrize(
    "answer",
    ["9^{9^{9^{9}}}", "(10^6)!", r"\binom{10^9}{5\cdot 10^8}", "2^{2^{2^{2^{2^{2}}}}}", "1000000000^{1000000000}",
     r"\sqrt{" * 80 + "2" + "}" * 80, "(" * 250 + "1" + ")" * 250, r"\frac{1}{" * 50 + "x" + "}" * 50,
     r"\int_0^1 e^{x^x} dx", r"\prod_{k=1}^{10^9} k", r"\lim_{x\to 0} x^{x^x}"],
)  # fmt: skip
async def test_monsters_are_read_as_text_within_the_limits(answer: str) -> None:
    began = time.perf_counter()
    (key,) = await equivalence_keys([answer])
    assert time.perf_counter() - began < 60 * SECONDS, "processor time of a busy machine, and a new process"
    assert key
    assert await equivalence_keys(["2^{10}"]) == ["1024"], "the next answer is read as ever"


async def test_a_monster_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalence, "_known", {})
    asked: list[str] = []
    call = equivalence._workers.call

    async def counted(latex: str) -> Any:
        asked.append(latex)
        return await call(latex)

    monkeypatch.setattr(equivalence._workers, "call", counted)
    await equivalence_keys(["7^{7^{7^{7}}}"])
    await equivalence_keys(["7^{7^{7^{7}}}"] * 1000)
    assert asked == ["7^{7^{7^{7}}}"]


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalence, "REMEMBERED", 5)
    numbers = [str(n) for n in range(50)]
    assert await equivalence_keys(numbers) == numbers
    assert len(equivalence._known) == 5
    assert await asyncio.gather(equivalence_keys(numbers), equivalence_keys(numbers[::-1])) == [numbers, numbers[::-1]]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    workers = Workers("no_such:f", size=1, name="reading an answer")
    monkeypatch.setattr(equivalence, "_known", {})
    monkeypatch.setattr(equivalence, "_workers", workers)
    yield
    workers.close()


@pytest.mark.usefixtures("broken")
async def test_without_math_verify_answers_are_compared_as_text(caplog: pytest.LogCaptureFixture) -> None:
    assert await equivalence_keys([r"\sqrt{4}", "0.50"]) == [r"\sqrt{4}", "0.5"]
    assert "1 of 2 answers were compared as text: reading an answer failed: cannot import" in caplog.text


@pytest.mark.usefixtures("broken")
async def test_without_math_verify_an_answer_has_a_verdict_only_where_its_text_is_enough() -> None:
    texts = [r"\boxed{\sqrt{4}}", r"\boxed{\sqrt{9}}", "no answer", r"\boxed{\sqrt{4}}"]
    group = [Completion(text=text) for text in texts]
    assert await MathAnswer(r"\sqrt{4}").score("q", group) == [1, None, 0, 1]
    assert await SelfConsistency().score("q", group) == [1, None, 0, 1]
    with pytest.raises(RewardError, match="an answer could not be read: reading an answer failed: cannot import"):
        await MathAnswer(r"\sqrt{4}").score("q", [Completion(text="2")])


async def test_votes_and_oracle_go_by_value() -> None:
    texts = [r"\boxed{\frac12}", "#### 50%", r"\boxed{\frac{\sqrt4}{4}}", "it is 0.25", "#### 1/4", r"\boxed{x}"]
    group = [Completion(text=text) for text in texts]
    assert await SelfConsistency().score("q", group) == [1, 1, 1, 0, 0, 0]
    assert await SelfConsistency(equivalence="text").score("q", group) == [0, 0, 0, 1, 1, 0]
    assert await MathAnswer(r"\tfrac{2}{4}").score("q", group) == [1, 1, 1, 0, 0, 0]


_pieces = st.sampled_from(
    [
        *r"0123456789+-*/^_(){}[],.=<>!|%&$\ xyie",
        r"\frac",
        r"\sqrt{",
        r"\text{",
        r"\pi",
        r"\begin{pmatrix}",
        r"\pm",
        r"\int",
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_pieces | st.characters(), max_size=25).map("".join))
@example("\x00")
@example("\ud800")
@example("$" * 511)
@example(r"\frac{1}{0}")
@example("0^{-1}")
@example(r"\frac{0}{0}")
def test_any_text_has_a_key(answer: str) -> None:
    began = time.process_time()  # Of this process; the others have their limits.
    keys = asyncio.run(equivalence_keys([answer, answer]))
    assert keys[0] == keys[1]
    assert time.process_time() - began < 8 * SECONDS


@pytest.mark.parametrize(
    "piece", ["9", " ", "$", r"\ ", "{", "}", "a", "ab. ", r"\text{", "(", "1,", "a ", r"\frac", ".", "- ", "1 "]
)
async def test_long_texts_take_no_time(piece: str) -> None:
    began = time.process_time()  # Of this process; the others have their limits.
    short = piece * (500 // len(piece))
    await equivalence_keys([piece * (100_000 // len(piece)), short, f"5 {short[:450]}!", f"{{5}}{short[:450]}_"])
    assert time.process_time() - began < 8 * SECONDS


class Queue(Workers):
    """Stands for the processes: notes what is asked, of how many at once, and fails on what has "9^" in it."""

    def __init__(self) -> None:
        super().__init__("builtins:len", name="reading an answer")
        self.asked: list[str] = []
        self.values: dict[str, str] = {}
        self.waiting = self.most = 0

    async def call(self, *args: Any, **kwargs: Any) -> Any:
        (latex,) = args
        self.asked.append(latex)
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        await asyncio.sleep(0)
        self.waiting -= 1
        if "9^" in latex:
            raise RewardTimeoutError("reading an answer took longer than 1 s of processor time")
        return self.values.get(latex, f"value of {latex}")


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    queue = Queue()
    monkeypatch.setattr(equivalence, "_workers", queue)
    monkeypatch.setattr(equivalence, "_known", {})
    return queue


HARD = [Completion(text=rf"\boxed{{9^{{9^{{{n}}}}}}}") for n in range(10, 40)]
GOLD = r"\sqrt{2}+\pi"


@pytest.mark.parametrize("reward", [SelfConsistency(), SelfConsistency(accumulate=True), MathAnswer(GOLD)])
async def test_a_run_of_hard_answers_leaves_the_processes_to_others(reward: Reward, queue: Queue) -> None:
    run = reward.session()
    await run.score("q", HARD)
    assert queue.most <= DEFAULT_SIZE, "the queue serves runs in turn"
    asked = [latex for latex in queue.asked if "9^" in latex]
    assert len(asked) <= PATIENCE + DEFAULT_SIZE - 1
    queue.asked.clear()
    await run.score("q", [Completion(text=r"\boxed{\sqrt{3}}"), *HARD])
    assert not queue.asked, "it was given up for the rest of the run"
    await reward.session().score("q", [Completion(text=r"\boxed{\sqrt{3}}")])
    assert r"\sqrt{3}" in queue.asked, "another run is served"


async def test_outside_of_runs_a_call_waits_for_its_turn_but_is_not_given_up(queue: Queue) -> None:
    await equivalence_keys([*(f"9^{{9^{{{n}}}}}" for n in range(9)), r"\sqrt{5}"])
    assert queue.most <= DEFAULT_SIZE
    assert len(queue.asked) == 10


async def test_what_is_given_up_is_compared_as_text_and_not_remembered(queue: Queue) -> None:
    allowance = Allowance(patience=0)
    assert await equivalence_keys([r"\sqrt{5}", "0.50"], allowance=allowance) == [r"\sqrt{5}", "0.5"]
    assert await equivalence_keys([r"\sqrt{5}"]) == [r"value of \sqrt{5}"]
    assert queue.asked == [r"\sqrt{5}"]


async def test_what_is_given_up_does_not_depend_on_the_order_of_a_group(queue: Queue) -> None:
    same = [r"\sqrt{8}", r"2\sqrt{2}"]
    queue.values = dict.fromkeys(same, "one value")
    group = [*HARD[:5], *(Completion(text=rf"\boxed{{{answer}}}") for answer in same)]
    verdicts = await SelfConsistency().session().score("q", group)
    equivalence._known.clear()
    assert await SelfConsistency().session().score("q", group[::-1]) == verdicts[::-1]


async def test_the_right_answer_is_read_before_the_others(queue: Queue) -> None:
    verdicts = await MathAnswer(GOLD).session().score("q", [*HARD, Completion(text=rf"\boxed{{{GOLD}}}")])
    assert verdicts[-1] == 1
    assert all(not verdict for verdict in verdicts[:-1])
    assert queue.asked[0] == r"\sqrt{2}+\pi"


SPELLINGS = [r"\sqrt{12}", r"2\cdot\sqrt{3}", r"\frac{6}{\sqrt{3}}"]


@pytest.mark.parametrize("reward", [MathAnswer(r"2\sqrt{3}"), SelfConsistency(), SelfConsistency(accumulate=True)])
async def test_what_is_not_read_any_more_has_no_verdict_and_is_told(
    reward: Reward, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.values = dict.fromkeys([*SPELLINGS, r"2\sqrt{3}"], "one value")
    group = [Completion(text=rf"\boxed{{{answer}}}") for answer in SPELLINGS]
    assert await reward.session().score("q", group) == [1, 1, 1]
    equivalence._known.clear()
    run = reward.session()
    assert await run.score("q", HARD[:PATIENCE]) == [0] * PATIENCE, "these were tried"
    assert not run.problems
    assert not caplog.messages
    for text in ("none", "none at all"):
        assert await run.score("q", [*group, Completion(text=text)]) == [None, None, None, 0]
        [problem] = run.problems
        assert "reading an answer is given up in this run, after 2 failures" in problem
    assert len(caplog.messages) == 1, "once in a run"
    await reward.session().score("q", [*HARD[:9], *group])
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("reward", [MathAnswer(r"\sqrt{12}"), SelfConsistency()])
async def test_what_is_not_read_any_more_is_right_where_its_text_is(reward: Reward, queue: Queue) -> None:
    run = reward.session()
    await run.score("q", HARD[:PATIENCE])
    equivalence._known.clear()
    group = [Completion(text=text) for text in (r"\boxed{\sqrt{12}}", r"#### \sqrt{12}", r"\boxed{\sqrt{11}}")]
    assert await run.score("q", group) == [1, 1, None]


async def test_what_could_be_read_loses_against_text_that_wins(queue: Queue) -> None:
    run = SelfConsistency().session()
    await run.score("q", HARD[:PATIENCE])
    texts = [r"\boxed{\sqrt{12}}", r"\boxed{\sqrt{12}}", "7", r"\boxed{\sqrt{11}}"]
    assert await run.score("q", [Completion(text=text) for text in texts]) == [1, 1, 0, None]
