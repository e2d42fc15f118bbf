"""Rewards in runs: what fails is told and costs its verdict, what recurs is judged once, any call may have its own."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from backends import Completion, Prompt
from backends.scripted import ScriptedBackend
from ets_agent import ETS, Warned
from rewards import PointwiseReward, Reward, RewardSpecError

SCRIPT = {"go left now": 0.5, "go right now": 0.3, "stay": 0.2}
SETTINGS: dict[str, Any] = {"num_candidates": 30, "num_rollouts": 4, "num_steps": 3, "max_tokens": 6, "seed": 0}


class Careful(PointwiseReward):
    """Likes "stay", cannot judge "left", counts what it is asked."""

    name = "careful"
    asked: Counter[str]

    def __init__(self) -> None:
        self.asked = Counter()

    async def judge(self, prompt: Prompt, completion: Completion) -> float:
        self.asked[completion.text] += 1
        if "left" in completion.text:
            raise OSError("judge unreachable")
        return float(completion.text == "stay")


async def test_failed_judgments_are_dropped_counted_and_reported() -> None:
    async with ETS(ScriptedBackend(SCRIPT), Careful(), **SETTINGS) as ets:
        events = [event async for event in ets.stream("q")]
        result = events[-1].result
    message = "reward 'careful' gave no verdict on 1 of 3 responses: OSError: judge unreachable"
    assert message in result.warnings
    assert message in [event.message for event in events if isinstance(event, Warned)]
    first = result.steps[0]
    unjudged = [rollout for group in first.rollouts for rollout in group if rollout.reward is None]
    assert {rollout.text for rollout in unjudged} == {"go left now"}
    assert first.dropped > 0


async def test_identical_responses_are_judged_once_in_a_run() -> None:
    reward = Careful()
    async with ETS(ScriptedBackend({"go right now": 0.8, "stay": 0.2}), reward, **SETTINGS) as ets:
        await ets.complete("q")
        assert set(reward.asked.values()) == {1}
        await ets.complete("q", seed=1)
        assert set(reward.asked.values()) == {2}, "another run has another prompt, or might"


async def test_a_reward_that_hangs_is_given_up() -> None:
    class Hung(Reward):
        name = "hung"
        time_limit = 0.05

        async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
            await asyncio.Event().wait()
            raise AssertionError

    async with asyncio.timeout(10), ETS(ScriptedBackend(SCRIPT), Hung(), **SETTINGS) as ets:
        result = await ets.complete("q")
    assert result.finish_reason == "stop"
    assert result.warnings[0] == (
        "reward 'hung' failed, its verdicts were left out: RewardTimeoutError: reward 'hung' took longer than 0.05 s"
    )


class _Plain(Reward):
    """A reward without a name, judging all of a group by a function."""

    def __init__(self, judge: Callable[[Sequence[Completion]], Any]) -> None:
        self.judge = judge

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        result = self.judge(completions)
        return await result if asyncio.isfuture(result) else result


def _cancelled(completions: Sequence[Completion]) -> asyncio.Future[Any]:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    return future


@pytest.mark.parametrize(
    ("judge", "problem"),
    [
        (_cancelled, "reward '_Plain' failed: CancelledError"),
        (lambda group: sys.exit(2), "reward '_Plain' failed: SystemExit: 2"),
        (
            lambda group: [float("nan")] * len(group),
            "reward '_Plain' must return finite numbers, -inf or None, not nan",
        ),
        (lambda group: [], "reward '_Plain' returned 0 values for"),
    ],
    ids=["cancelled", "exits", "nan", "too few"],
)
async def test_whatever_a_reward_does_costs_its_verdicts_and_not_the_run(judge: Any, problem: str) -> None:
    async with ETS(ScriptedBackend(SCRIPT), _Plain(judge), **SETTINGS) as ets:
        result = await ets.complete("q")
        assert result.finish_reason in ("stop", "length")
        assert problem in result.warnings[0]
        assert [item.finish_reason for item in await ets.complete_many(["q"])] == [result.finish_reason]


async def test_a_run_that_is_cancelled_while_its_reward_judges_is_cancelled() -> None:
    asked = asyncio.Event()

    class Waiting(Reward):
        async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError

    async with ETS(ScriptedBackend(SCRIPT), Waiting(), **SETTINGS) as ets:
        task = asyncio.create_task(ets.complete("q"))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_what_a_reward_forbids_is_never_chosen() -> None:
    def forbid(completion: Completion) -> float:
        return float("-inf") if completion.text != "stay" else 0.0

    async with ETS(ScriptedBackend(SCRIPT), **SETTINGS | {"num_steps": 1}) as ets:
        result = await ets.complete("q", reward=forbid)
        assert (result.text, result.warnings) == ("stay", [])
        combined = {"name": "rescale", "reward": forbid, "scale": 2.0}
        assert (await ets.complete("q", reward=combined)).text == "stay"


@pytest.mark.parametrize(
    "reward",
    [
        "regex:pattern=right",
        {"name": "regex", "pattern": "right"},
        json.dumps({"name": "regex", "pattern": "right"}),
        lambda completion: float("right" in completion.text),
    ],
    ids=["text", "mapping", "json", "function"],
)
async def test_a_reward_for_one_call_is_one_argument(reward: Any) -> None:
    async with ETS(ScriptedBackend(SCRIPT), "exact_match:gold=stay", **SETTINGS) as ets:
        assert (await ets.complete("q")).text == "stay"
        assert (await ets.complete("q", reward=reward)).text == "go right now"
        assert (await ets.complete("q")).text == "stay"
        one, other = await asyncio.gather(ets.complete("q"), ets.complete("q", reward=reward))
        assert (one.text, other.text) == ("stay", "go right now")


async def test_a_whole_run_from_one_json_object() -> None:
    config = json.loads('{"reward": {"name": "exact_match", "gold": ["stay"]}, "num_candidates": 8, "seed": 5}')
    async with ETS(ScriptedBackend(SCRIPT), max_tokens=6) as ets:
        assert (await ets.complete("q", **config)).text == "stay"


async def test_each_item_of_a_batch_may_have_its_own_reward() -> None:
    rewards = ["exact_match:gold=stay", "regex:pattern=left"]
    async with ETS(ScriptedBackend(SCRIPT), **SETTINGS) as ets:
        results = await ets.complete_many(["q", "q"], reward=rewards)
        assert [result.text for result in results] == ["stay", "go left now"]


async def test_a_specification_that_is_wrong_is_refused_before_anything_is_drawn() -> None:
    async with ETS(ScriptedBackend(SCRIPT)) as ets:
        with pytest.raises(RewardSpecError, match="reward 'choice': missing argument 'gold'"):
            await ets.complete("q", reward="choice")
