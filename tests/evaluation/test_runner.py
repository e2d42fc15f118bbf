from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from backends import BackendError, CapabilityError, Prompt, State
from backends.base import Capabilities
from backends.scripted import ScriptedBackend
from ets_agent import ConfigError, ETSConfig
from ets_agent.evaluation import METHODS, EvalReport, ItemRecord, evaluate
from rewards import RewardSpecError, SelfConsistency

CONFIG = ETSConfig(num_candidates=4, num_rollouts=3, num_steps=2, max_tokens=16)


@dataclass(frozen=True)
class Question:
    question: str
    answer: int | str


PROBLEMS = [Question(f"What is {number}?", number) for number in range(12)]
ALONE = [name for name, method in METHODS.items() if not method.uses_proposal]
"""Methods that need no second model; test_comparison.py is about the others."""


def guess(prompt: Prompt) -> Mapping[str, float]:
    """Know the number that is asked for, but be sure of nothing."""
    text = prompt if isinstance(prompt, str) else prompt[0]["content"]
    number = int(text.removeprefix("What is ").removesuffix("?"))
    return {f"I think #### {number}": 3.0, f"I think #### {number + 1}": 2.0, f"No, #### {number + 2}.0": 2.0}


def outcomes(report: EvalReport) -> list[dict[str, object]]:
    """What became of the problems, apart from how long it took."""
    return [item.model_dump(exclude={"seconds"}) for item in report.items]


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend(guess)


@pytest.mark.parametrize("method", ALONE)
async def test_results_do_not_depend_on_concurrency_or_the_number_of_problems(
    backend: ScriptedBackend, method: str
) -> None:
    one_by_one = await evaluate(backend, PROBLEMS, method=method, config=CONFIG, seed=3, concurrency=1)
    together = await evaluate(backend, PROBLEMS, method=method, config=CONFIG, seed=3, concurrency=12)
    fewer = await evaluate(backend, PROBLEMS[:5], method=method, config=CONFIG, seed=3)
    assert outcomes(one_by_one) == outcomes(together)
    assert outcomes(one_by_one)[:5] == outcomes(fewer)


async def test_problems_have_seeds_of_their_own(backend: ScriptedBackend) -> None:
    same = [Question("What is 1?", 1)] * 30
    report = await evaluate(backend, same, method="base", config=CONFIG)
    assert len({item.seed for item in report.items}) == 30
    assert len({item.text for item in report.items}) == 3


async def test_self_consistency_beats_a_single_sample(backend: ScriptedBackend) -> None:
    many = PROBLEMS * 10
    base, best, guided = [
        await evaluate(backend, many, method=method, config=CONFIG) for method in ("base", "best_of_n", "ets")
    ]
    assert base.accuracy == pytest.approx(3 / 7, abs=0.15)
    assert best.accuracy > base.accuracy
    assert guided.accuracy > base.accuracy
    assert base.interval.low < base.accuracy < base.interval.high


async def test_records_of_one_method_are_told_while_others_are_under_way() -> None:
    told = asyncio.Event()

    class Waiting(ScriptedBackend):
        async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
            drawn = await super().extend(state, n, tokens=tokens, seed=seed)
            if any("#### 1" in one.text for one in drawn):
                await asyncio.wait_for(told.wait(), 30)
            return drawn

    backend = Waiting(lambda prompt: ["####" + str(prompt).strip("?").removeprefix("What is")])
    report = await evaluate(
        backend, PROBLEMS[:2], method="base", config=CONFIG, chat=False, on_progress=lambda record: told.set()
    )
    assert [item.correct for item in report.items] == [True, True]


async def test_answers_are_compared_by_value() -> None:
    golds = ["1000", 1000, "1,000", r"\frac{2000}{2}", "10^3", "100"]
    report = await evaluate(ScriptedBackend(["#### 1,000.0"]), [Question("q", gold) for gold in golds], config=CONFIG)
    assert [item.correct for item in report.items] == [True, True, True, True, True, False]
    assert {item.answer for item in report.items} == {"1,000.0"}


async def test_a_response_without_an_answer_is_wrong() -> None:
    report = await evaluate(ScriptedBackend(["no idea"]), PROBLEMS[:2], method="base", config=CONFIG)
    assert report.items[0].answer is None
    assert (report.correct, report.errors) == (0, 0)


async def test_a_problem_that_fails_is_a_record_and_not_the_end() -> None:
    def respond(prompt: Prompt) -> Mapping[str, float]:
        if "7" in str(prompt):
            raise OSError("the line is dead")
        return guess(prompt)

    seen: list[ItemRecord] = []
    report = await evaluate(ScriptedBackend(respond), PROBLEMS, config=CONFIG, on_progress=seen.append)
    failed = report.items[7]
    assert (failed.error, failed.correct, failed.text, failed.tokens) == ("OSError: the line is dead", False, None, 0)
    assert (report.count, report.errors) == (12, 1)
    assert sum(item.error is None for item in report.items) == 11
    assert sorted(item.index for item in seen) == list(range(12))


async def test_a_failed_draw_is_an_error_of_the_model_alone() -> None:
    class Failing(ScriptedBackend):
        async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
            return [State(finish_reason="error")] * n

    report = await evaluate(Failing(["a"]), PROBLEMS[:1], method="base", config=CONFIG)
    assert report.items[0].error == "BackendError: scripted failed to draw a response"


async def test_a_single_sample_keeps_to_the_timeout() -> None:
    backend = ScriptedBackend(["a"], delay=30.0)
    report = await evaluate(backend, PROBLEMS[:1], method="base", config=CONFIG.replace(timeout=0.01))
    assert report.items[0].error == "TimeoutError"


async def test_no_more_problems_are_under_way_than_allowed() -> None:
    most = 0

    class Counting(ScriptedBackend):
        async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
            nonlocal most
            self.active += 1
            most = max(most, self.active)
            for _ in range(5):
                await asyncio.sleep(0)
            self.active -= 1
            return await super().extend(state, n, tokens=tokens, seed=seed)

    await evaluate(Counting(guess), PROBLEMS, method="base", config=CONFIG, concurrency=3)
    assert most == 3


@pytest.mark.parametrize(
    ("method", "n", "expected"),
    [
        ("base", None, (1, 1, 1)),
        ("best_of_n", None, (12, 1, 1)),
        ("best_of_n", 5, (5, 1, 1)),
        ("ets", None, (4, 3, 2)),
    ],
)
async def test_a_report_holds_the_settings_that_ran(
    backend: ScriptedBackend, method: str, n: int | None, expected: tuple[int, int, int]
) -> None:
    report = await evaluate(backend, PROBLEMS[:1], method=method, config=CONFIG, n=n, seed=9)
    config = report.config
    assert (config.num_candidates, config.num_rollouts, len(config.blocks)) == expected
    assert report.reward == (None if method == "base" else "self_consistency")
    assert (report.seed, report.model) == (9, "scripted")


async def test_best_of_n_draws_as_many_as_a_step_of_ets_looks_at(backend: ScriptedBackend) -> None:
    config = CONFIG.replace(num_rollouts=(2, 5), num_chains=3)
    report = await evaluate(backend, PROBLEMS[:1], method="best_of_n", config=config)
    assert (report.errors, report.config.num_candidates, report.config.num_chains) == (0, 4 * 5 * 3, 1)


async def test_best_of_n_takes_settings_in_blocks(backend: ScriptedBackend) -> None:
    config = ETSConfig(block_size=4, max_tokens=16, num_candidates=2, num_rollouts=2)
    report = await evaluate(backend, PROBLEMS[:1], method="best_of_n", config=config)
    assert report.errors == 0
    assert report.config.blocks == [16]


async def test_best_of_n_is_one_step_of_n_complete_samples(backend: ScriptedBackend) -> None:
    report = await evaluate(backend, PROBLEMS[:1], method="best_of_n", config=CONFIG, n=10)
    assert 10 * 4 <= report.tokens <= 10 * 5  # a response has four or five words, its end included


@pytest.mark.parametrize("method", ["best_of_n", "ets"])
async def test_guided_methods_tell_how_many_candidates_carry_the_weight(backend: ScriptedBackend, method: str) -> None:
    report = await evaluate(backend, PROBLEMS, method=method, config=CONFIG)
    assert all(item.ess is not None and 0 < item.ess <= 1 for item in report.items)
    assert len({item.ess for item in report.items}) > 1
    assert report.ess == pytest.approx(sum(item.ess or 0 for item in report.items) / len(report.items))
    assert report.ratio_ess is None


async def test_candidates_of_equal_weight_count_fully() -> None:
    report = await evaluate(ScriptedBackend(["a b #### 1"]), PROBLEMS[:2], config=CONFIG)
    assert report.ess == pytest.approx(1.0)


async def test_a_single_sample_has_no_candidates(backend: ScriptedBackend) -> None:
    report = await evaluate(backend, PROBLEMS[:2], method="base", config=CONFIG)
    assert (report.ess, report.items[0].ess) == (None, None)


async def test_chat_is_asked_where_the_model_takes_it() -> None:
    prompts: list[Prompt] = []

    def respond(prompt: Prompt) -> list[str]:
        prompts.append(prompt)
        return ["#### 0"]

    text_only = ScriptedBackend(respond, capabilities=Capabilities(chat=False))
    for backend, chat in ((ScriptedBackend(respond), None), (ScriptedBackend(respond), False), (text_only, None)):
        await evaluate(backend, PROBLEMS[:1], method="base", config=CONFIG, chat=chat)
    assert prompts == [[{"role": "user", "content": "What is 0?"}], "What is 0?", "What is 0?"]


async def test_a_report_survives_a_json_round_trip(backend: ScriptedBackend) -> None:
    report = await evaluate(backend, PROBLEMS, config=CONFIG, benchmark="numbers")
    text = report.model_dump_json()
    assert EvalReport.model_validate_json(text) == report
    assert f'"accuracy":{report.accuracy}' in text


async def test_no_problems_make_an_empty_report(backend: ScriptedBackend) -> None:
    report = await evaluate(backend, [], config=CONFIG)
    assert (report.count, report.accuracy, report.tokens_per_problem, report.interval) == (0, 0.0, 0.0, (0.0, 1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "nope"}, "allowed: base, best_of_n, ets, ets_is"),
        ({"against": "nope"}, "there is no method 'nope'"),
        ({"method": "ets_is"}, "method ets_is needs a proposal, --proposal on the command line or proposal= in Python"),
        ({"against": "ets_is"}, "method ets_is needs a proposal"),
        ({"config": ETSConfig(proposal_temperature=0.5)}, "there is no proposal"),
        ({"concurrency": 0}, "at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"method": "ets", "n": 3}, "n is 3"),
        ({"method": "base", "n": 3}, "n is 3"),
        ({"method": "base", "against": "ets", "n": 3}, "n is 3, but method base or ets does not take it"),
        ({"method": "best_of_n", "n": 0}, "n is 0"),
    ],
)
async def test_bad_settings_are_refused(backend: ScriptedBackend, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        await evaluate(backend, PROBLEMS, **options)
    assert backend.calls == 0


async def test_an_unsuitable_setup_ends_the_evaluation_before_it_begins() -> None:
    backend = ScriptedBackend(guess, capabilities=Capabilities(continue_prefix=False))
    with pytest.raises(CapabilityError):
        await evaluate(backend, PROBLEMS, config=CONFIG)
    with pytest.raises(RewardSpecError):
        await evaluate(backend, PROBLEMS, config=CONFIG, reward="nope")
    assert (await evaluate(backend, PROBLEMS[:2], method="best_of_n", config=CONFIG)).errors == 0


async def test_a_reward_is_closed_by_whoever_made_it(backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[SelfConsistency] = []

    async def aclose(reward: SelfConsistency) -> None:
        closed.append(reward)

    monkeypatch.setattr(SelfConsistency, "aclose", aclose)
    await evaluate(backend, PROBLEMS[:1], config=CONFIG, reward=SelfConsistency())
    assert closed == []
    await evaluate(backend, PROBLEMS[:1], config=CONFIG, reward="self_consistency")
    assert len(closed) == 1


async def test_a_cancelled_evaluation_leaves_no_task_behind() -> None:
    backend = ScriptedBackend(guess, delay=30.0)
    task = asyncio.create_task(evaluate(backend, PROBLEMS, config=CONFIG))
    while backend.active < len(PROBLEMS):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert backend.active == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_errors_of_the_model_are_told_with_their_type() -> None:
    def respond(prompt: Prompt) -> list[str]:
        raise BackendError("gone")

    report = await evaluate(ScriptedBackend(respond), PROBLEMS[:1], config=CONFIG)
    assert report.items[0].error == "BackendError: gone"
