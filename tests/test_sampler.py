"""The sampler on a scripted model: it reaches the optimal policy, and nothing goes wrong quietly."""

from __future__ import annotations

import asyncio
import math
import weakref
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

import rewards
from backends import (
    Backend,
    BackendError,
    BudgetExceededError,
    Capabilities,
    CapabilityError,
    Completion,
    Metered,
    Prompt,
    PromptError,
    State,
)
from backends.scripted import ScriptedBackend
from ets_agent import (
    ETS,
    BlockCommitted,
    CandidatesWeighed,
    ConfigError,
    ETSConfig,
    Finished,
    Result,
    RunningLoopError,
    StepStarted,
    Warned,
)
from ets_agent.sampler import item_seeds
from rewards import Reward
from tests.virtual_time import now, timeless

SCRIPT = {
    "go left then up": 0.30,
    "go left then down": 0.20,
    "go right now": 0.25,
    "go right later on": 0.10,
    "stay": 0.15,
}
VALUES = {"go left then up": 0.0, "go left then down": 1.0, "go right now": 0.4, "go right later on": 0.9, "stay": 0.6}


class Valued(Reward):
    """Knows the reward of every response, and what it was asked."""

    name = "valued"

    def __init__(self, values: dict[str, float | None] | None = None) -> None:
        self.values: dict[str, float | None] = dict(VALUES) if values is None else values
        self.asked: list[list[Completion]] = []

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        self.asked.append(list(completions))
        return [self.values[completion.text] for completion in completions]

    def answer(self, completion: Completion) -> str | None:
        return completion.text.split()[-1] if completion.text else None


class Silent(Reward):
    """Scores nothing that it was not taught."""

    def __init__(self, error: Exception | None = None, scores: Any = None) -> None:
        self.error, self.scores = error, scores

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        if self.error is not None:
            raise self.error
        return self.scores(completions) if callable(self.scores) else self.scores


def optimal(kl_coef: float, power: float = 1.0) -> dict[str, float]:
    """p*(x) ∝ p_ref(x) exp(r / λ); ``power`` is an inverse temperature on whole responses (1 here)."""
    unnormalized = {text: SCRIPT[text] ** power * math.exp(VALUES[text] / kl_coef) for text in SCRIPT}
    total = sum(unnormalized.values())
    return {text: value / total for text, value in unnormalized.items()}


async def sample(count: int, *, seed: int = 0, **settings: Any) -> Counter[str]:
    ets = ETS(ScriptedBackend(SCRIPT), Valued(), **settings)
    results = await ets.complete_many(["q"] * count, concurrency=64, seed=seed)
    return Counter(result.text for result in results if isinstance(result, Result))


def distance(found: Counter[str], expected: dict[str, float]) -> float:
    """Total variation between frequencies and probabilities."""
    count = found.total()
    return sum(abs(found[text] / count - p) for text, p in expected.items()) / 2


@pytest.mark.parametrize("settings", [{"num_steps": 1}, {"block_size": 2}, {"block_size": 1}], ids=str)
async def test_it_samples_from_the_optimal_policy(settings: dict[str, int]) -> None:
    """With many candidates and rollouts the response's distribution is p*, for one step as for several."""
    kl_coef = 0.5
    found = await sample(1500, num_candidates=48, num_rollouts=12, kl_coef=kl_coef, max_tokens=6, **settings)
    # Five cells and 1500 draws: noise alone gives about 0.025; p_ref itself is more than 0.2 away.
    assert distance(found, optimal(kl_coef)) < 0.05
    assert distance(found, SCRIPT) > 0.15


async def test_large_kl_coefs_stay_with_the_model_and_small_ones_take_the_best() -> None:
    loose = await sample(1500, num_candidates=16, num_rollouts=2, kl_coef=1e6, max_tokens=6, block_size=2)
    assert distance(loose, SCRIPT) < 0.05
    greedy = await sample(100, num_candidates=48, num_rollouts=12, kl_coef=0.0, max_tokens=6, block_size=2)
    assert greedy == {"go left then down": 100}


async def test_one_candidate_is_plain_sampling() -> None:
    found = await sample(1500, num_candidates=1, num_rollouts=1, kl_coef=0.1, max_tokens=6, block_size=2)
    assert distance(found, SCRIPT) < 0.05


async def test_finished_candidates_are_never_rolled_out() -> None:
    rolled: list[State] = []

    class Watched(ScriptedBackend):
        async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
            rolled.extend(states)
            return await super().rollout(states, n, seed=seed)

    reward = Valued()
    ets = ETS(Watched(SCRIPT), reward, num_candidates=24, num_rollouts=3, block_size=2, max_tokens=6, seed=1)
    result = await ets.complete("q")
    first = result.steps[0]
    assert any(first.finished)
    assert rolled
    assert not any(state.finished for state in rolled)
    ended = [index for index, finished in enumerate(first.finished) if finished]
    for index in ended:
        (only,) = first.rollouts[index]
        assert first.log_energies[index] == pytest.approx(VALUES[only.text] / 0.1), "its energy is known exactly"
    assert not any(completion.token_ids for completion in reward.asked[-1]), "the last step has no rollouts"


async def test_budgets_add_up() -> None:
    lengths: list[int] = []

    class Watched(ScriptedBackend):
        async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
            groups = await super().rollout(states, n, seed=seed)
            lengths.extend(s.num_tokens + len(c.token_ids) for s, g in zip(states, groups, strict=True) for c in g)
            return groups

    ets = ETS(Watched(lambda _: ["one two three four five six seven eight"]), Valued({"one two three four five": 1.0}))
    result = await ets.complete("q", max_tokens=5, num_steps=3, seed=0)
    assert (result.text, result.finish_reason) == ("one two three four five", "length")
    assert set(lengths) == {5}
    assert [sum(step.candidates[step.chosen].split() != [] for step in result.steps)] == [3]


async def test_identical_candidates_share_rollouts_and_count_as_often_as_drawn() -> None:
    states: list[Sequence[State]] = []

    class Watched(ScriptedBackend):
        async def rollout(self, asked: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
            states.append(asked)
            return await super().rollout(asked, n, seed=seed)

    reward = Valued()
    ets = ETS(Watched(SCRIPT), reward, num_candidates=30, num_rollouts=4, block_size=2, max_tokens=6, kl_coef=0.5)
    result = await ets.complete("q", seed=3)
    assert len(states[0]) == len(set(states[0])) <= 2, "'go left' and 'go right' are all there is to continue"
    trace = result.steps[0]
    counts = Counter(trace.candidates)
    assert counts.total() == 30
    for text in counts:
        weights = [w for c, w in zip(trace.candidates, trace.weights, strict=True) if c == text]
        assert weights == pytest.approx([weights[0]] * len(weights))
    mass: dict[str, float] = {}
    for completion in reward.asked[0]:
        head = " ".join(completion.text.split()[:2])
        mass[head] = mass.get(head, 0.0) + math.exp(completion.log_weight)
    # Every draw of a candidate weighs as many votes as it would have had rollouts.
    assert mass == pytest.approx({text: 4 * count for text, count in counts.items()})


async def test_the_same_seed_gives_the_same_run() -> None:
    ets = ETS(ScriptedBackend(SCRIPT), Valued(), num_candidates=3, num_rollouts=2, block_size=2, max_tokens=6)
    one, two = await ets.complete("q", seed=5), await ets.complete("q", seed=5)
    assert one.steps == two.steps
    texts = {(await ets.complete("q", seed=seed)).text for seed in range(20)}
    assert len(texts) > 1
    drawn = await ets.complete("q")
    again = await ets.complete("q", seed=drawn.seed)
    assert again.steps == drawn.steps


async def test_events_tell_the_run_in_order() -> None:
    ets = ETS(ScriptedBackend(SCRIPT), Valued(), num_candidates=4, num_rollouts=2, block_size=2, max_tokens=6, seed=0)
    events = [event async for event in ets.stream("q")]
    *steps, last = events
    assert isinstance(last, Finished)
    kinds = [type(event) for event in steps]
    assert kinds == [StepStarted, CandidatesWeighed, BlockCommitted] * len(last.result.steps)
    committed = [event for event in steps if isinstance(event, BlockCommitted)]
    assert "".join(event.delta for event in committed) == committed[-1].text == last.result.text
    assert last.result == await ets.complete("q") or last.result.usage.seconds != 0


async def test_results_survive_json() -> None:
    values: dict[str, float | None] = {**VALUES, "stay": -math.inf, "go right now": None}
    ets = ETS(ScriptedBackend(SCRIPT), Valued(values), num_candidates=20, num_rollouts=2, block_size=2, max_tokens=6)
    result = await ets.complete("☃ 😀 <script>", seed=2)
    assert -math.inf in result.steps[0].log_energies
    assert Result.model_validate_json(result.model_dump_json()) == result
    config = ETSConfig.build(stop="\n", num_steps=3, kl_coef=1e-300)
    assert ETSConfig.model_validate_json(config.model_dump_json()) == config


async def test_no_verdict_is_left_out_and_counted() -> None:
    values: dict[str, float | None] = {**VALUES, "go left then up": None, "go left then down": None}
    ets = ETS(ScriptedBackend(SCRIPT), Valued(values), num_candidates=20, num_rollouts=3, block_size=2, max_tokens=6)
    result = await ets.complete("q", seed=0)
    trace = result.steps[0]
    left = [index for index, text in enumerate(trace.candidates) if text == "go left"]
    assert left
    assert {trace.weights[index] for index in left} == {0.0}
    assert trace.dropped == 3
    assert "left" not in result.text


@pytest.mark.parametrize(
    ("reward", "complaint"),
    [
        (Silent(ValueError("no network")), "ValueError: no network"),
        (Silent(rewards.RewardError("sandbox gone")), "RewardError: sandbox gone"),
        (Silent(TimeoutError("too slow")), "TimeoutError: too slow"),
        (Silent(scores=lambda c: [1.0]), "returned 1 values for"),
        (Silent(scores=lambda c: [math.nan] * len(c)), "finite numbers, -inf or None, not nan"),
        (Silent(scores=lambda c: [math.inf] * len(c)), "finite numbers, -inf or None, not inf"),
        (Silent(scores=lambda c: ["good"] * len(c)), "finite numbers, -inf or None, not 'good'"),
        (Silent(scores=None), "must return a list, not NoneType"),
    ],
)
async def test_a_failing_reward_costs_its_verdicts_not_the_run(reward: Reward, complaint: str) -> None:
    ets = ETS(ScriptedBackend(SCRIPT), reward, num_candidates=4, num_rollouts=2, block_size=2, max_tokens=6, seed=0)
    events = [event async for event in ets.stream("q")]
    warned = [event for event in events if isinstance(event, Warned)]
    assert complaint in warned[0].message
    assert isinstance(events[-1], Finished)
    result = events[-1].result
    assert result.text in SCRIPT
    assert result.warnings == [event.message for event in warned]
    assert result.reward is None
    assert {step.fallback for step in result.steps} == {"no_verdict"}


@pytest.mark.parametrize("answer", [lambda text: text.split("####")[1], lambda text: 42])
async def test_an_answer_that_cannot_be_read_is_no_end(answer: Any) -> None:
    class Odd(Valued):
        def answer(self, completion: Completion) -> str | None:
            return answer(completion.text)  # type: ignore[no-any-return]

    result = await ETS(ScriptedBackend(SCRIPT), Odd(), max_tokens=6, block_size=2, seed=0).complete("q")
    assert result.text in SCRIPT
    assert result.reward == VALUES[result.text]
    if result.answer is None:
        assert result.warnings == ["the reward could not read an answer: IndexError: list index out of range"]
    else:
        assert result.answer == "42"


async def test_failed_rollouts_are_dropped_and_counted() -> None:
    class Flaky(ScriptedBackend):
        async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
            groups = await super().rollout(states, n, seed=seed)
            return [[Completion(text="", finish_reason="error", error="reset"), *group[1:]] for group in groups]

    reward = Valued()
    ets = ETS(Flaky(SCRIPT), reward, num_candidates=6, num_rollouts=3, block_size=1, max_tokens=6, seed=0)
    result = await ets.complete("q")
    assert "1 of 3 rollouts failed" in result.warnings[0] or "rollouts failed" in result.warnings[0]
    assert all(completion.finish_reason != "error" for asked in reward.asked for completion in asked)
    assert result.steps[0].dropped >= 1


async def test_a_backend_that_fails_ends_the_run() -> None:
    class Dead(ScriptedBackend):
        async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
            raise BackendError("connection refused")

    ets = ETS(Dead(SCRIPT), Valued(), max_tokens=6)
    with pytest.raises(BackendError, match="connection refused"):
        await ets.complete("q")
    results = await ets.complete_many(["q", "q"])
    assert all(isinstance(result, BackendError) for result in results)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num_candidates": 0}, "num_candidates is 0: input should be greater than or equal to 1"),
        ({"num_candidates": 1.5}, "num_candidates"),
        ({"num_candidates": True}, "num_candidates is True; allowed: a number"),
        ({"num_rollouts": 0}, "num_rollouts"),
        ({"num_rollouts": -3}, "num_rollouts"),
        ({"kl_coef": -0.1}, "kl_coef is -0.1: input should be greater than or equal to 0"),
        ({"kl_coef": math.nan}, "kl_coef is nan: input should be a finite number"),
        ({"kl_coef": math.inf}, "kl_coef"),
        ({"temperature": math.nan}, "temperature is nan: input should be a finite number"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"block_size": 65, "max_tokens": 64}, "block_size is 65; allowed: 1 to max_tokens, which is 64"),
        ({"num_steps": 65, "max_tokens": 64}, "num_steps is 65; allowed: 1 to max_tokens, which is 64"),
        ({"num_steps": 3, "block_size": 16, "max_tokens": 64}, "makes 4 steps"),
        ({"stop": ["a", ""]}, "stop"),
        ({"seed": -1}, "seed"),
        ({"timeout": 0}, "timeout"),
        ({"num_candidate": 8}, "there is no setting 'num_candidate'; allowed: num_candidates"),
    ],
)
async def test_invalid_settings_are_refused_at_once(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ETS(ScriptedBackend(SCRIPT), Valued(), **settings)
    assert complaint in str(caught.value)
    ets = ETS(ScriptedBackend(SCRIPT), Valued(), max_tokens=64)
    with pytest.raises(ConfigError):
        ets.stream("q", **settings)


def test_blocks_add_up() -> None:
    assert ETSConfig(max_tokens=64, block_size=16).blocks == [16] * 4
    assert ETSConfig(max_tokens=10, block_size=4).blocks == [4, 4, 2]
    assert ETSConfig(max_tokens=9, num_steps=4).blocks == [2, 2, 2, 3]
    assert ETSConfig(max_tokens=512).blocks == [128] * 4
    assert ETSConfig(max_tokens=3).blocks == [1, 1, 1]
    assert ETSConfig(max_tokens=64, num_steps=4, block_size=16).blocks == [16] * 4


def test_an_override_of_the_steps_replaces_the_blocks() -> None:
    config = ETSConfig.build(max_tokens=64, block_size=16)
    assert config.replace(num_steps=2).blocks == [32, 32]
    assert config.replace(num_steps=2).replace(block_size=60).blocks == [60, 4]


async def test_bad_prompts_are_refused() -> None:
    ets = ETS(ScriptedBackend(SCRIPT, context=100), Valued(), max_tokens=6)
    bad: list[Any] = ["", "  ", [], 5, [{"content": "x"}]]
    for prompt in bad:
        with pytest.raises(PromptError):
            await ets.complete(prompt)
    with pytest.raises(PromptError, match="allowed: 100 together"):
        await ets.complete("word " * 95)


def test_what_a_backend_cannot_do_is_refused_at_construction() -> None:
    chat_only = ScriptedBackend(SCRIPT, capabilities=Capabilities(continue_prefix=False))
    with pytest.raises(CapabilityError, match="only num_steps=1 is possible"):
        ETS(chat_only, Valued(), num_steps=2)
    ets = ETS(chat_only, Valued(), num_steps=1)
    with pytest.raises(CapabilityError):
        ets.stream("q", num_steps=2)


async def test_cancellation_leaves_nothing_running() -> None:
    backend = ScriptedBackend(SCRIPT, delay=30)
    ets = ETS(backend, Valued(), max_tokens=6)
    before = asyncio.all_tasks()
    runs = [asyncio.create_task(ets.complete("q")), asyncio.create_task(ets.complete_many(["q"] * 5))]
    while backend.active < 6:
        await asyncio.sleep(0)
    for run in runs:
        run.cancel()
    await asyncio.gather(*runs, return_exceptions=True)
    assert all(run.cancelled() for run in runs)
    assert asyncio.all_tasks() == before
    assert backend.active == 0


async def test_cancellation_reaches_the_reward() -> None:
    asked, cancelled = asyncio.Event(), asyncio.Event()

    class Slow(Reward):
        async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
            asked.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return []

    run = asyncio.create_task(ETS(ScriptedBackend(SCRIPT), Slow(), max_tokens=6).complete("q"))
    await asked.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert cancelled.is_set()


async def test_leaving_a_stream_early_leaves_nothing_behind() -> None:
    ets = ETS(ScriptedBackend(SCRIPT), Valued(), max_tokens=6)
    before = asyncio.all_tasks()
    async for _ in ets.stream("q"):
        break
    assert asyncio.all_tasks() == before


@timeless
async def test_a_deadline_gives_the_best_answer_so_far() -> None:
    backend = ScriptedBackend(SCRIPT, delay=0.05)
    ets = ETS(backend, Valued(), num_candidates=16, num_rollouts=4, block_size=1, max_tokens=6, seed=0)
    result = await ets.complete("q", timeout=0.23)
    assert now() == 0.23
    assert (result.finish_reason, result.cut_short) == ("timeout", True)
    assert len(result.steps) == 2, "each takes 0.1 s"
    assert result.text in SCRIPT, "a complete answer, not the committed prefix"
    assert result.reward == VALUES[result.text]
    assert backend.active == 0
    nothing = await ets.complete("q", timeout=0.01)
    assert (nothing.text, nothing.reward, nothing.finish_reason) == ("", None, "timeout")


class SlowCandidates(ScriptedBackend):
    """Rollouts of several states never end; that of one ends at once, or fails."""

    def __init__(self, *, error: Exception | None = None) -> None:
        super().__init__(SCRIPT)
        self.error = error

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        if len(states) > 1 or n > 1:
            self.active += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.active -= 1
        if self.error is not None:
            raise self.error
        return await super().rollout(states, n, seed=seed)


@timeless
async def test_a_deadline_in_the_first_step_gives_a_plain_draw() -> None:
    backend = SlowCandidates()
    before = asyncio.all_tasks()
    result = await ETS(backend, Valued(), max_tokens=6).complete("q", timeout=0.1)
    assert (result.finish_reason, result.steps) == ("timeout", ())
    assert result.text in SCRIPT
    assert (result.answer, result.reward) == (result.text.split()[-1], None)
    assert result.usage.rollout_tokens == len(result.text.split()) + 1
    assert "plain draw" in result.warnings[-1]
    assert (asyncio.all_tasks(), backend.active) == (before, 0)


@timeless
async def test_without_a_plain_draw_there_is_nothing_to_return() -> None:
    backend = SlowCandidates(error=BackendError("broken"))
    result = await ETS(backend, Valued(), max_tokens=6).complete("q", timeout=0.1)
    assert (result.text, result.finish_reason) == ("", "timeout")
    assert ["before any response was complete" in warning for warning in result.warnings] == [True]


class OneCallOnly(SlowCandidates):
    """Candidates cost more tokens than there are; the plain draw comes after that is known."""

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        raise BudgetExceededError("spent")

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        await asyncio.sleep(0.01)
        return await super().rollout(states, n, seed=seed)


@timeless
async def test_a_budget_that_ends_the_first_step_gives_the_plain_draw_that_was_under_way() -> None:
    backend = Metered(OneCallOnly(), 1000)
    result = await ETS(backend, Valued(), max_tokens=6).complete("q")
    assert (result.finish_reason, result.steps, result.text in SCRIPT) == ("budget", (), True)
    late = await ETS(Metered(OneCallOnly(), 1000), Valued(), max_tokens=6).complete("q", timeout=0.001)
    assert (late.finish_reason, late.text) == ("timeout", "")


@timeless
async def test_a_plain_draw_is_as_probable_as_the_models_own() -> None:
    ets = ETS(SlowCandidates(), Valued(), max_tokens=6)
    results = await asyncio.gather(*(ets.complete("q", timeout=0.3, seed=seed) for seed in range(400)))
    counts = Counter(result.text for result in results)
    for text, probability in SCRIPT.items():
        assert abs(counts[text] - 400 * probability) < 4.5 * math.sqrt(400 * probability * (1 - probability)), text


async def test_what_is_drawn_is_the_same_with_a_deadline_and_without() -> None:
    ets = ETS(ScriptedBackend(SCRIPT), Valued(), num_candidates=4, num_rollouts=2, max_tokens=6)
    for seed in range(5):
        free, bounded = [await ets.complete("q", seed=seed, timeout=timeout) for timeout in (None, 60)]
        assert bounded.steps == free.steps
        assert bounded.text == free.text


async def committed_and_result(ets: ETS, **overrides: Any) -> tuple[str, Result]:
    """The text that a run had announced as committed before its end, and its result."""
    text = ""
    async for event in ets.stream("q", **overrides):
        if isinstance(event, BlockCommitted):
            text = event.text
        elif isinstance(event, Finished):
            return text, event.result
    raise AssertionError("a run ends with Finished")


@timeless
async def test_a_run_that_is_cut_short_keeps_what_it_has_committed() -> None:
    backend = ScriptedBackend(["a b c d", "e f g h", "i j k l"], delay=0.02)
    ets = ETS(backend, Silent(scores=lambda c: [1.0] * len(c)), block_size=1, max_tokens=4, num_candidates=4)
    for seed in range(12):
        text, result = await committed_and_result(ets, seed=seed, timeout=0.07)
        assert result.cut_short
        assert result.text.startswith(text)
        assert result.text in {"a b c d", "e f g h", "i j k l"}


@timeless
async def test_a_later_failure_does_not_lose_an_earlier_answer() -> None:
    class Failing(ScriptedBackend):
        async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
            groups = await super().rollout(states, n, seed=seed)
            if states[0].num_tokens > 1:
                return [[Completion(text="", finish_reason="error")] * n for _ in groups]
            return groups

    backend = Failing(["a b c d e f"], delay=0.03)
    ets = ETS(backend, Silent(scores=lambda c: [1.0] * len(c)), block_size=1, max_tokens=6)
    result = await ets.complete("q", timeout=0.14)
    assert (result.text, result.cut_short) == ("a b c d e f", True)


async def test_caches_of_rejected_candidates_go_with_their_states() -> None:
    alive: list[int] = []
    seen: list[weakref.ref[State]] = []

    class Watched(ScriptedBackend):
        async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
            alive.append(sum(other() is not None for other in seen))
            states = await super().extend(state, n, tokens=tokens, seed=seed)
            seen[:] = [weakref.ref(new) for new in states]
            return states

    ets = ETS(Watched(["a b c d e f"]), Valued({"a b c d e f": 1.0}), block_size=1, max_tokens=6, num_candidates=8)
    await ets.complete("q", seed=0)
    assert alive == [0, 1, 1, 1, 1, 1], "only the chosen one"


def test_what_is_no_backend_and_no_settings_is_refused() -> None:
    wrong: list[Any] = [None, 5, object()]
    for backend in wrong:
        with pytest.raises(ConfigError, match="backend must be"):
            ETS(backend)
    settings: Any = {"num_candidates": 2}
    with pytest.raises(ConfigError, match="config must be"):
        ETS(ScriptedBackend(SCRIPT), config=settings)
    with pytest.raises(BackendError, match="at least one response"):
        ETS(ScriptedBackend({})).complete_sync("q")


@pytest.mark.parametrize("settings", [{}, {"num_chains": 3}, {"share_rollouts": False}, {"kl_coef": 0.0}])
async def test_rollouts_share_the_weight_of_their_candidate(settings: dict[str, Any]) -> None:
    async with ETS(
        ScriptedBackend(SCRIPT), Valued(), num_candidates=6, num_rollouts=5, num_steps=4, max_tokens=8
    ) as ets:
        result = await ets.complete("q", seed=3, **settings)
    for step in result.steps:
        for weight, group in zip(step.weights, step.rollouts, strict=True):
            assert sum(rollout.share for rollout in group) == pytest.approx(1.0 if weight > 0 else 0.0)
            best = max((rollout.reward or 0.0) for rollout in group)
            factors = [
                float(rollout.reward == best)
                if result.config.kl_coef == 0
                else math.exp(((rollout.reward or 0.0) - best) / result.config.kl_coef)
                for rollout in group
            ]
            if weight > 0:
                assert [rollout.share for rollout in group] == pytest.approx([f / sum(factors) for f in factors])


async def test_many_prompts_have_bounded_concurrency_and_their_own_seeds() -> None:
    peak = 0

    class Watched(ScriptedBackend):
        async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
            nonlocal peak
            peak = max(peak, self.active + 1)
            return await super().extend(state, n, tokens=tokens, seed=seed)

    seen: list[int] = []
    ets = ETS(Watched(SCRIPT, delay=0.002), Valued(), num_candidates=2, num_rollouts=1, max_tokens=6, num_steps=1)
    some = await ets.complete_many(["q"] * 12, concurrency=3, seed=4, on_result=lambda index, _: seen.append(index))
    all_at_once = await ets.complete_many(["q"] * 12, concurrency=12, seed=4)
    assert peak <= 12
    assert sorted(seen) == list(range(12))
    assert [r.text for r in some if isinstance(r, Result)] == [r.text for r in all_at_once if isinstance(r, Result)]
    assert len({r.seed for r in some if isinstance(r, Result)}) == 12
    assert item_seeds(4, 12)[:5] == item_seeds(4, 5)
    failing = await ets.complete_many(["q", "", "q"], reward=[Valued(), Valued(), "self_consistency"], seed=1)
    assert [type(result) for result in failing] == [Result, PromptError, Result]
    assert await ets.complete_many([]) == []
    with pytest.raises(ConfigError, match="prompts must be a list of prompts, not str"):
        await ets.complete_many("ab")
    with pytest.raises(ConfigError, match="concurrency is 0"):
        await ets.complete_many(["q"], concurrency=0)
    with pytest.raises(ConfigError, match="2 prompts but 1 rewards"):
        await ets.complete_many(["q", "q"], reward=[Valued()])


async def test_rewards_can_be_swapped_per_call() -> None:
    ets = ETS(
        ScriptedBackend(["it is #### 42", "it is #### 7"]), max_tokens=8, num_candidates=16, num_steps=1, kl_coef=0
    )
    for gold in (42, 7):
        result = await ets.complete("q", reward=f"math_answer:gold={gold}", seed=0)
        assert (result.answer, result.reward) == (str(gold), 1.0)


async def test_blocking_calls_are_for_scripts() -> None:
    ets = ETS(ScriptedBackend(SCRIPT), Valued(), max_tokens=6)
    with pytest.raises(RunningLoopError, match=r"await ets\.complete"):
        ets.complete_sync("q")
    result = await asyncio.to_thread(ets.complete_sync, "q", seed=1)
    assert result == (await ets.complete("q", seed=1)).model_copy(update={"usage": result.usage})


async def test_only_what_was_loaded_here_is_closed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    own, given = ScriptedBackend(SCRIPT), ScriptedBackend(SCRIPT)
    monkeypatch.setattr("backends.load", lambda name: own)
    async with ETS("by name", Valued(), max_tokens=6), ETS(given, Valued(), max_tokens=6) as ets:
        pass
    with pytest.raises(BackendError):
        await own.begin("q", max_tokens=1, params=ets.config.sampling)
    assert (await ets.complete("q")).text in SCRIPT


def test_the_scripted_backend_is_a_backend() -> None:
    assert isinstance(ScriptedBackend(SCRIPT), Backend)
    assert np.isclose(sum(SCRIPT.values()), 1)


async def test_a_reward_made_for_one_call_is_closed_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Reward] = []

    class Held(Valued):
        async def aclose(self) -> None:
            closed.append(self)

    given = Held()
    ets = ETS(ScriptedBackend(SCRIPT), given, max_tokens=6)
    monkeypatch.setattr("rewards.build", lambda spec: spec if isinstance(spec, Reward) else Held())
    await ets.complete("q", reward="held")
    assert len(closed) == 1, "at once, not when the garbage collector comes by"
    async with aclosing(ets.stream("q", reward="held")) as events:
        async for _ in events:
            break
    assert len(closed) == 2
    await ets.complete("q")
    await ets.complete("q", reward=given)
    await ets.aclose()
    assert len(closed) == 2, "a reward that was handed over stays open"


@pytest.mark.parametrize(
    ("value", "low", "high"), [(3, 3, 3), ((2, 8), 2, 8), ([2, 8], 2, 8), ((4, 4), 4, 4), ("5", 5, 5)]
)
def test_rollouts_are_a_number_or_a_range(value: Any, low: int, high: int) -> None:
    config = ETSConfig.build(num_rollouts=value)
    assert config.rollout_rounds[0] == low
    assert sum(config.rollout_rounds) == high
    assert ETSConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    "value", [0, (0, 2), (4, 2), (1, 2, 3), (), "many", 2.5, None, True, math.nan, [1], (1, "x"), (True, 3)]
)
def test_what_is_no_number_of_rollouts_is_refused_in_one_sentence(value: Any) -> None:
    with pytest.raises(ConfigError, match="num_rollouts") as caught:
        ETSConfig.build(num_rollouts=value)
    assert "allowed: a number" in str(caught.value)
    assert str(caught.value).count("num_rollouts") == 1


def test_each_round_of_rollouts_doubles_what_is_there() -> None:
    assert ETSConfig(num_rollouts=(2, 16)).rollout_rounds == [2, 2, 4, 8]
    assert ETSConfig(num_rollouts=(3, 10)).rollout_rounds == [3, 3, 4]


class Judged(Valued):
    """Pointwise: each completion is to be judged once."""

    pointwise = True


async def test_a_pointwise_reward_judges_every_rollout_once_and_a_group_reward_all_again() -> None:
    settings: dict[str, Any] = {"num_candidates": 8, "num_rollouts": (2, 32), "block_size": 1, "max_tokens": 6}
    single, group = Judged(), Valued()
    one, other = [await ETS(ScriptedBackend(SCRIPT), r, **settings).complete("q", seed=1) for r in (single, group)]
    assert one.steps == other.steps
    drawn = one.steps[0].num_rollouts * len(set(one.steps[0].candidates))
    assert drawn > 4
    distinct = [
        rollout
        for step in one.steps
        for line in dict(zip(step.candidates, step.rollouts, strict=True)).values()
        for rollout in line
    ]
    assert sum(len(asked) for asked in single.asked) == len(distinct)
    assert sum(len(asked) for asked in group.asked) > len(distinct)


async def test_a_range_that_needs_no_more_is_its_low_end() -> None:
    same = Silent(scores=lambda c: [1.0] * len(c))
    same.maximum = 1.0
    settings: dict[str, Any] = {"num_candidates": 6, "block_size": 2, "max_tokens": 6}
    fixed = await ETS(ScriptedBackend(SCRIPT), same, num_rollouts=3, **settings).complete("q", seed=4)
    ranged = await ETS(ScriptedBackend(SCRIPT), same, num_rollouts=(3, 48), **settings).complete("q", seed=4)
    assert ranged.steps == fixed.steps
    assert ranged.usage.rollout_tokens == fixed.usage.rollout_tokens
    assert ranged.usage.saved_tokens == 15 * fixed.usage.rollout_tokens
    assert fixed.usage.saved_tokens == 0


async def test_several_chains_tell_what_they_did() -> None:
    ets = ETS(ScriptedBackend(SCRIPT), Valued(), num_candidates=3, num_rollouts=2, block_size=1, max_tokens=6)
    for seed in range(20):
        events = [event async for event in ets.stream("q", seed=seed, num_chains=5, kl_coef=0.3)]
        last = events[-1]
        assert isinstance(last, Finished)
        result = last.result
        assert result.text in SCRIPT
        assert result.reward == VALUES[result.text]
        committed = [event for event in events if isinstance(event, BlockCommitted)]
        assert "".join(event.delta for event in committed) == committed[-1].text == result.text
        for step in result.steps:
            assert len(step.kept) == 5
            assert set(step.chains) == set(range(5))
            assert len(step.candidates) == len(step.weights) == len(step.chains) <= 15
            assert sum(step.weights) == pytest.approx(1)
            assert step.chosen in step.kept
            assert step.resampled or [step.chains[place] for place in step.kept] == list(range(5))
        for number, step in enumerate(result.steps[1:], start=1):
            before = result.steps[number - 1]
            ended = [chain for chain, place in enumerate(before.kept) if before.finished[place]]
            assert all(step.chains.count(chain) == (1 if chain in ended else 3) for chain in range(5))


async def test_one_chain_is_the_run_of_before() -> None:
    ets = ETS(ScriptedBackend(SCRIPT), Valued(), num_candidates=3, num_rollouts=2, block_size=2, max_tokens=6)
    for seed in range(10):
        result = await ets.complete("q", seed=seed, num_chains=1)
        assert {place for step in result.steps for place in step.chains} == {0}
        assert all(step.kept == (step.chosen,) and not step.resampled for step in result.steps)


@pytest.mark.parametrize("kl_coef", [0.0, 1e-300, 0.05, 1e9])
async def test_no_kl_coef_overflows_with_several_chains(kl_coef: float) -> None:
    ets = ETS(ScriptedBackend(SCRIPT), Valued(), num_candidates=8, num_rollouts=24, block_size=1, max_tokens=6)
    results = await ets.complete_many(["q"] * 60, seed=0, num_chains=6, kl_coef=kl_coef)
    texts = Counter(result.text for result in results if isinstance(result, Result))
    assert texts.total() == 60
    if kl_coef < 1e-3:
        assert texts["go left then down"] >= 58, "only the best response is left"


async def test_chains_that_fail_end_together() -> None:
    class Failing(ScriptedBackend):
        async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
            if seed % 3 == 0:
                raise BackendError("connection refused")
            return await super().extend(state, n, tokens=tokens, seed=seed)

    ets = ETS(Failing(SCRIPT, delay=5), Valued(), num_chains=8, max_tokens=6, block_size=1)
    before = asyncio.all_tasks()
    with pytest.raises(BackendError, match="connection refused"):
        await ets.complete("q", seed=0)
    assert asyncio.all_tasks() == before


@timeless
async def test_several_chains_keep_a_deadline() -> None:
    backend = ScriptedBackend(SCRIPT, delay=0.05)
    ets = ETS(backend, Valued(), num_chains=4, num_candidates=4, block_size=1, max_tokens=6)
    for seed in range(3):
        text, result = await committed_and_result(ets, seed=seed, timeout=0.2)
        assert result.cut_short
        assert result.text in SCRIPT
        assert result.text.startswith(text), "what all chains agree on is never taken back"
    assert backend.active == 0


async def test_the_normalizer_is_reported_where_it_exists() -> None:
    ets = ETS(ScriptedBackend(SCRIPT), Valued(), num_candidates=64, num_rollouts=16, block_size=2, max_tokens=6)
    exact = math.log(sum(p * math.exp(VALUES[text] / 0.5) for text, p in SCRIPT.items()))
    result = await ets.complete("q", seed=0, kl_coef=0.5)
    assert result.log_normalizer == pytest.approx(exact, abs=0.25)
    assert result.log_normalizer_error is not None
    assert abs(result.log_normalizer - exact) < 3 * result.log_normalizer_error
    greedy = await ets.complete("q", seed=0, kl_coef=0)
    assert (greedy.log_normalizer, greedy.log_normalizer_error) == (None, None)
    silent = await ets.complete("q", seed=0, reward=Silent(ValueError("no")))
    assert silent.log_normalizer is None


async def test_a_chain_that_has_ended_keeps_its_vote() -> None:
    """Most of the model says 7; that chains which say so end first must not silence them."""
    script = {"#### 7": 0.7, "hm hm hm #### 5": 0.3}
    shares = []
    for num_chains in (1, 8):
        ets = ETS(ScriptedBackend(script), block_size=3, max_tokens=9, num_chains=num_chains, kl_coef=0.5)
        results = await ets.complete_many(["q"] * 300, seed=0)
        shares.append(sum(result.answer == "5" for result in results if isinstance(result, Result)) / 300)
    one, many = shares
    assert 0.05 < one < 0.3
    assert many < one


async def test_a_finished_chain_is_judged_once_by_a_pointwise_reward() -> None:
    reward = Judged({"a": 0.5, "b c d e f g": 0.4})
    ets = ETS(ScriptedBackend(["a", "b c d e f g"]), reward, num_chains=4, num_candidates=2, block_size=1, max_tokens=8)
    longest = 0
    for seed in range(10):
        reward.asked.clear()
        result = await ets.complete("q", seed=seed, num_rollouts=1)
        asked = Counter(completion.text for group in reward.asked for completion in group)
        longest = max(longest, len(result.steps))
        assert asked["a"] <= 2, "as a rollout and as an answer, however many steps follow"
    assert longest == 7


async def test_the_chosen_candidate_is_the_one_on_which_most_chains_stand() -> None:
    ets = ETS(ScriptedBackend(SCRIPT), Valued(), num_candidates=2, num_rollouts=2, block_size=1, max_tokens=6)
    seen = 0
    for seed in range(40):
        for step in (await ets.complete("q", seed=seed, num_chains=12, kl_coef=0.3)).steps[:-1]:
            if step.resampled:
                seen += 1
                state = {place: (step.candidates[place], step.log_energies[place]) for place in step.kept}
                standing = Counter(state[place] for place in step.kept)
                assert standing[state[step.chosen]] == max(standing.values())
    assert seen > 5


async def test_a_reward_that_fails_in_a_later_round_leaves_no_verdicts_of_an_earlier_one() -> None:
    class Tiring(Valued):
        async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
            if len(self.asked) == 1:
                self.asked.append([])
                raise ValueError("tired")
            return await super().score(prompt, completions)

    ets = ETS(ScriptedBackend(SCRIPT), Tiring(), num_rollouts=(2, 64), block_size=2, max_tokens=6)
    result = await ets.complete("q", seed=0)
    assert "tired" in result.warnings[0]
    rewards = [rollout.reward for line in result.steps[0].rollouts for rollout in line]
    assert None not in rewards, "the third round judged them all"


@timeless
async def test_an_answer_that_contradicts_committed_text_is_not_given() -> None:
    class Failing(ScriptedBackend):
        async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
            groups = await super().rollout(states, n, seed=seed)
            if states[0].num_tokens > 1:
                return [[Completion(text="", finish_reason="error")] * n for _ in groups]
            return groups

    backend = Failing(["a b c d e f", "a x c d e f"], delay=0.03)
    ets = ETS(backend, Silent(scores=lambda c: [1.0] * len(c)), block_size=1, max_tokens=6, timeout=0.14)
    for seed in range(8):
        text, result = await committed_and_result(ets, seed=seed)
        assert result.text.startswith(text)


async def test_further_rounds_draw_further_rollouts() -> None:
    seeds: list[int] = []

    class Watched(ScriptedBackend):
        async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
            seeds.append(seed)
            return await super().rollout(states, n, seed=seed)

    ets = ETS(Watched(SCRIPT), Valued(), num_candidates=8, block_size=1, max_tokens=6)
    result = await ets.complete("q", seed=1, num_rollouts=(2, 32))
    assert len(seeds) > len(result.steps)
    assert len(set(seeds)) == len(seeds), "a round with the seed of another would draw the same again"
