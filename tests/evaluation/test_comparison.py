"""ETS-IS in evaluations, and two methods that run in turn."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from backends import BackendError, Completion, Prompt, State, TokenizerMismatchError
from backends.enumerable import EnumerableBackend
from backends.scripted import ScriptedBackend
from ets_agent import ConfigError, ETSConfig
from ets_agent.evaluation import EvalReport, ItemRecord, evaluate, runner
from tests.evaluation.test_runner import CONFIG, PROBLEMS, guess, outcomes

STEPS = ETSConfig(num_candidates=4, num_rollouts=3, block_size=1, max_tokens=3)
REFERENCE = EnumerableBackend.from_tables(
    {
        "": {"4 - 1 = ": 2.0, "1 + 2 = ": 1.0},
        "4 - 1 = ": {"#### 3": 3.0, "#### 5": 1.0},
        "1 + 2 = ": {"#### 3": 1.0, "#### 5": 1.0},
    },
    name="reference",
)
TWIN = REFERENCE.perturbed(0.0, seed=0)
PROPOSAL = REFERENCE.perturbed(0.5, seed=1)


class Clock(ScriptedBackend):
    """Every response takes a second, and the very first one a hundred, by a clock that only it moves."""

    def __init__(self) -> None:
        super().__init__(guess)
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        self.now += n if self.now else 100.0
        return await super().extend(state, n, tokens=tokens, seed=seed)


def report(*seconds: float, against: EvalReport | None = None) -> EvalReport:
    return EvalReport(
        method="ets", model="none", seed=0, config=STEPS, chunk_seconds=seconds, items=(), against=against
    )


async def test_ets_is_takes_its_rollouts_from_the_proposal() -> None:
    rolled_out: list[str] = []

    class Watched(EnumerableBackend):
        async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
            rolled_out.append(self.name)
            return await super().rollout(states, n, seed=seed)

    reference = Watched.random(0, letters=["1 ", "#### 3"])
    proposal = reference.perturbed(0.3, seed=1)
    found = await evaluate(reference, PROBLEMS, method="ets_is", proposal=proposal, config=STEPS)
    assert set(rolled_out) == {proposal.name}
    assert (found.errors, found.model, found.proposal) == (0, reference.name, proposal.name)
    assert found.reward == "self_consistency"


async def test_results_of_ets_is_do_not_depend_on_concurrency_or_the_number_of_problems() -> None:
    one_by_one, together = [
        await evaluate(REFERENCE, PROBLEMS, method="ets_is", proposal=PROPOSAL, config=STEPS, concurrency=concurrency)
        for concurrency in (1, 12)
    ]
    fewer = await evaluate(REFERENCE, PROBLEMS[:5], method="ets_is", proposal=PROPOSAL, config=STEPS)
    assert outcomes(one_by_one) == outcomes(together)
    assert outcomes(one_by_one)[:5] == outcomes(fewer)
    assert (one_by_one.errors, one_by_one.items[3].correct) == (0, one_by_one.items[3].answer == "3")


async def test_the_importance_weights_of_a_twin_count_fully() -> None:
    found = await evaluate(REFERENCE, PROBLEMS, method="ets_is", proposal=TWIN, config=STEPS)
    assert found.ratio_ess == pytest.approx(1.0)


async def test_a_proposal_that_differs_costs_effective_sample_size() -> None:
    found = await evaluate(REFERENCE, PROBLEMS, method="ets_is", proposal=PROPOSAL, config=STEPS)
    assert found.ratio_ess is not None
    assert 0 < found.ratio_ess < 0.99


async def test_without_rollouts_there_are_no_importance_weights() -> None:
    config = STEPS.replace(num_steps=1)
    found = await evaluate(REFERENCE, PROBLEMS[:2], method="ets_is", proposal=PROPOSAL, config=config)
    assert found.ess is not None
    assert found.ratio_ess is None


@pytest.mark.parametrize(("method", "against"), [("base", None), ("ets", None), ("base", "best_of_n")])
async def test_a_proposal_for_nothing_is_refused(method: str, against: str | None) -> None:
    with pytest.raises(ConfigError, match="takes no proposal; allowed: with ets_is"):
        await evaluate(REFERENCE, PROBLEMS, method=method, against=against, proposal=PROPOSAL, config=STEPS)


async def test_an_unsuitable_proposal_ends_the_evaluation_before_it_begins() -> None:
    with pytest.raises(TokenizerMismatchError):
        await evaluate(REFERENCE, PROBLEMS, method="ets_is", proposal=EnumerableBackend.random(0), config=STEPS)
    with pytest.raises(ConfigError, match="would truncate it"):
        await evaluate(REFERENCE, PROBLEMS, method="ets_is", proposal=PROPOSAL, config=STEPS.replace(top_p=0.5))


@pytest.mark.parametrize(("method", "against"), [("ets_is", "ets"), ("ets", "ets_is"), ("base", "ets_is")])
async def test_a_method_gives_the_same_results_in_turn_with_another_as_alone(method: str, against: str) -> None:
    both = await evaluate(
        REFERENCE, PROBLEMS, method=method, against=against, proposal=PROPOSAL, config=STEPS, seed=4, concurrency=5
    )
    assert both.against is not None
    for found, name in ((both, method), (both.against, against)):
        proposal = PROPOSAL if name == "ets_is" else None
        alone = await evaluate(REFERENCE, PROBLEMS, method=name, proposal=proposal, config=STEPS, seed=4)
        assert outcomes(found) == outcomes(alone)
        assert (found.method, found.proposal) == (name, alone.proposal)
        assert found.config == alone.config


async def test_methods_get_of_the_settings_what_is_theirs() -> None:
    config = STEPS.replace(top_p=0.9, proposal_temperature=1.5)
    both = await evaluate(REFERENCE, PROBLEMS[:2], method="ets_is", against="ets", proposal=PROPOSAL, config=config)
    assert both.against is not None
    assert (both.config.proposal_temperature, both.against.config.proposal_temperature) == (1.5, None)
    many = await evaluate(ScriptedBackend(guess), PROBLEMS[:2], method="ets", against="best_of_n", n=7, config=CONFIG)
    assert many.against is not None
    assert (many.config.num_candidates, many.against.config.num_candidates) == (4, 7)


async def test_the_method_that_begins_alternates_from_chunk_to_chunk() -> None:
    seen: list[ItemRecord] = []
    await evaluate(
        ScriptedBackend(guess),
        PROBLEMS[:5],
        method="ets",
        against="base",
        config=CONFIG,
        concurrency=2,
        on_progress=seen.append,
    )
    assert [record.method for record in seen] == ["ets"] * 2 + ["base"] * 4 + ["ets"] * 2 + ["ets", "base"]
    assert [sorted(record.index for record in seen[place : place + 2]) for place in (0, 2, 4, 6)] == [
        [0, 1],
        [0, 1],
        [2, 3],
        [2, 3],
    ]


async def test_both_warm_up_with_the_first_problem() -> None:
    prompts: list[Prompt] = []

    def respond(prompt: Prompt) -> list[str]:
        prompts.append(prompt)
        return ["#### 0"]

    seen: list[ItemRecord] = []
    both = await evaluate(
        ScriptedBackend(respond),
        PROBLEMS[:3],
        method="base",
        against="base",
        config=CONFIG,
        chat=False,
        on_progress=seen.append,
    )
    assert prompts[:2] == ["What is 0?"] * 2
    assert sorted(prompts[2:]) == sorted(problem.question for problem in PROBLEMS[:3] * 2)
    assert len(seen) == both.count + (both.against.count if both.against else 0) == 6


async def test_wall_times_are_those_of_the_chunks_without_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Clock()
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=backend.monotonic))
    both = await evaluate(backend, PROBLEMS[:5], method="best_of_n", against="base", n=3, config=CONFIG, concurrency=2)
    assert both.against is not None
    assert both.chunk_seconds == (6.0, 6.0, 3.0)
    assert both.against.chunk_seconds == (2.0, 2.0, 1.0)
    assert (both.seconds, both.against.seconds) == (15.0, 5.0)
    assert (both.wall_time_ratio, both.median_chunk_ratio) == (3.0, 3.0)


async def test_the_time_to_judge_is_no_wall_time(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Clock()
    seen: set[str] = set()

    async def keys(answers: Sequence[str]) -> list[str]:
        """What is read takes long, and is known after that."""
        for answer in set(answers) - seen:
            backend.now += 50
            seen.add(answer)
        return list(answers)

    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=backend.monotonic))
    monkeypatch.setattr(runner, "equivalence_keys", keys)
    both = await evaluate(backend, PROBLEMS[:5], method="base", against="base", config=CONFIG, concurrency=2)
    assert seen
    assert both.against is not None
    assert both.chunk_seconds == both.against.chunk_seconds == (2.0, 2.0, 1.0)
    assert (both.wall_time_ratio, both.median_chunk_ratio) == (1, 1)


async def test_every_problem_has_its_wall_time(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Clock()
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=backend.monotonic))
    alone = await evaluate(backend, PROBLEMS[:3], method="best_of_n", n=3, config=CONFIG, concurrency=1)
    assert [item.seconds for item in alone.items] == [100.0, 3.0, 3.0]
    assert alone.chunk_seconds == (106.0,)
    assert (alone.wall_time_ratio, alone.median_chunk_ratio) == (None, None)


def test_the_ratio_is_of_totals_and_the_median_of_chunks() -> None:
    both = report(1.0, 9.0, 2.0, against=report(2.0, 3.0, 4.0))
    assert both.wall_time_ratio == pytest.approx(12 / 9)
    assert both.median_chunk_ratio == 0.5


def test_no_time_has_no_ratio() -> None:
    assert report(1.0, against=report(0.0)).wall_time_ratio is None
    some = report(1.0, 1.0, against=report(0.0, 1.0))
    assert (some.wall_time_ratio, some.median_chunk_ratio) == (2.0, None)


async def test_a_comparison_of_nothing_is_empty() -> None:
    both = await evaluate(ScriptedBackend(guess), [], method="ets", against="base", config=CONFIG)
    assert both.against is not None
    assert (both.count, both.against.count, both.wall_time_ratio) == (0, 0, None)


async def test_what_fails_in_one_method_is_no_matter_of_the_other() -> None:
    class Failing(EnumerableBackend):
        async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
            raise BackendError("gone")

    proposal = Failing.random(0, letters=["4 - 1 = ", "1 + 2 = ", "#### 3", "#### 5"])
    reference = EnumerableBackend.random(1, letters=["4 - 1 = ", "1 + 2 = ", "#### 3", "#### 5"])
    both = await evaluate(reference, PROBLEMS[:4], method="ets_is", against="ets", proposal=proposal, config=STEPS)
    assert both.against is not None
    assert (both.errors, both.against.errors) == (4, 0)
    assert {item.error for item in both.items} == {"BackendError: gone"}
    assert (both.ess, both.ratio_ess) == (None, None)


async def test_a_comparison_survives_a_json_round_trip() -> None:
    both = await evaluate(REFERENCE, PROBLEMS, method="ets_is", against="ets", proposal=PROPOSAL, config=STEPS)
    text = both.model_dump_json()
    assert EvalReport.model_validate_json(text) == both
    assert f'"wall_time_ratio":{both.wall_time_ratio}' in text
    assert f'"ratio_ess":{both.ratio_ess}' in text
