from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from backends import Completion, Prompt
from rewards import Choice, ExactMatch, JSONSchema, MathAnswer, Regex, Reward, SelfConsistency
from rewards.functions import FunctionReward, GroupFunctionReward
from rewards.testing import check_reward


async def _length(completion: Completion) -> float:
    return len(completion.text)


def _share(group: list[Completion]) -> list[float | None]:
    total = sum(len(completion.text) for completion in group)
    return [len(completion.text) / total if total else None for completion in group]


SCHEMA = {"type": "integer"}

REWARDS: dict[str, Callable[[], Reward]] = {
    "votes": SelfConsistency,
    "votes-accumulated": lambda: SelfConsistency(accumulate=True),
    "votes-extractor": lambda: SelfConsistency(extractor=lambda text: text[:1]),
    "math": lambda: MathAnswer(2),
    "exact": lambda: ExactMatch("2"),
    "choice": lambda: Choice("A"),
    "regex": lambda: Regex(r"\d"),
    "json-schema": lambda: JSONSchema(SCHEMA),
    "function": lambda: FunctionReward(lambda completion: len(completion.text)),
    "async-function": lambda: FunctionReward(_length),
    "group-function": lambda: GroupFunctionReward(_share),
}


@pytest.mark.parametrize("make", REWARDS.values(), ids=REWARDS)
def test_reward_keeps_the_contract(make: Callable[[], Reward]) -> None:
    check_reward(make)


class _Broken(Reward):
    def __init__(self, judge: Callable[[Sequence[Completion]], list[float | None]]) -> None:
        self._judge = judge

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        return self._judge(completions)


def _verdicts(completions: Sequence[Completion], value: float | None) -> list[float | None]:
    return [None if c.finish_reason == "error" else value for c in completions]


@pytest.mark.parametrize(
    "judge",
    [
        lambda group: _verdicts(group, 1.0)[1:],
        lambda group: _verdicts(group, float("nan")),
        lambda group: [1.0] * len(group),
        lambda group: [float(i) for i in range(len(group))],
        lambda group: _verdicts(group, random.random()),
        lambda group: (group.clear() if isinstance(group, list) else None) or [],
    ],
    ids=["too-short", "nan", "judges-failed-draws", "position", "random", "clears-the-list"],
)
def test_conformance_check_notices_broken_rewards(judge: Callable[[Sequence[Completion]], list[float | None]]) -> None:
    with pytest.raises((AssertionError, ExceptionGroup)):
        check_reward(lambda: _Broken(judge))
