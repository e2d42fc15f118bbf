from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from backends import Completion, Prompt
from rewards import (
    CodeConsistency,
    CodeTests,
    LLMJudge,
    PointwiseReward,
    RewardError,
    RewardTimeoutError,
    Similarity,
)

A, B, C = (Completion(text=text) for text in "abc")
FAILED = Completion(text="a", finish_reason="error")


class Lengthy(PointwiseReward):
    """Judges by length; fails on "!", abstains on "?", hangs on "…"."""

    name = "lengthy"
    judgment_limit = 0.05

    def __init__(self) -> None:
        self.judged: Counter[str] = Counter()
        self.running = self.most = 0

    async def judge(self, prompt: Prompt, completion: Completion) -> float | None:
        self.judged[completion.text] += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(60 if completion.text == "…" else 0)
        finally:
            self.running -= 1
        if completion.text == "!":
            raise ValueError("no way")
        return {"?": None, "nan": float("nan")}.get(completion.text, len(completion.text))


def _group(*texts: str) -> list[Completion]:
    return [Completion(text=text) for text in texts]


async def test_identical_completions_are_judged_once() -> None:
    reward = Lengthy()
    group = [A, Completion(text="a", log_weight=3.0, finish_reason="length"), B, A, FAILED]
    assert await reward.score("q", group) == [1, 1, 1, 1, None]
    assert reward.judged == {"a": 1, "b": 1}


async def test_a_run_judges_what_recurs_once_and_the_next_run_anew() -> None:
    reward = Lengthy()
    run = reward.session()
    assert await run.score("q", [A, B]) == [1, 1]
    assert await run.score("q", [B, C]) == [1, 1]
    assert reward.judged == {"a": 1, "b": 1, "c": 1}
    assert await reward.session().score("q", [A]) == [1]
    assert await reward.score("q", [A]) == [1]
    assert reward.judged["a"] == 3


async def test_what_counts_as_identical_can_be_said() -> None:
    class ByReason(Lengthy):
        def identity(self, completion: Completion) -> tuple[str, str]:
            return completion.text, completion.finish_reason

    reward = ByReason()
    await reward.score("q", [A, Completion(text="a", finish_reason="length"), A])
    assert reward.judged == {"a": 2}


async def test_failures_cost_their_verdict_and_are_told(caplog: pytest.LogCaptureFixture) -> None:
    reward = Lengthy()
    assert await reward.score("q", _group("!", "ab", "…", "?", "!", "nan")) == [None, 2, None, None, None, None]
    assert list(reward.problems) == [
        "reward 'lengthy' gave no verdict on 1 of 5 responses: ValueError: no way",
        "reward 'lengthy' gave no verdict on 1 of 5 responses: RewardTimeoutError: reward 'lengthy' took longer than "
        "0.05 s",
        "reward 'lengthy' gave no verdict on 1 of 5 responses: RewardError: reward 'lengthy' must return finite "
        "numbers, -inf or None, not nan",
    ]
    assert [record.getMessage() for record in caplog.records] == list(reward.problems)
    assert await reward.score("q", _group("ab")) == [2]
    assert list(reward.problems) == []


async def test_an_abstention_is_no_failure() -> None:
    reward = Lengthy()
    assert await reward.score("q", _group("?", "?")) == [None, None]
    assert list(reward.problems) == []


@pytest.mark.parametrize(
    ("text", "error"),
    [("!", RewardError), ("…", RewardTimeoutError), ("nan", RewardError)],
    ids=["raises", "hangs", "nan"],
)
async def test_if_nothing_can_be_judged_it_raises(text: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="'lengthy'"):
        await Lengthy().score("q", [*_group(text, text), FAILED])


async def test_failures_are_tried_again_within_a_run() -> None:
    run = Lengthy().session()
    assert await run.score("q", _group("!", "a")) == [None, 1]
    assert await run.score("q", _group("!", "a")) == [None, 1]
    assert run.judged == {"!": 2, "a": 1}


async def test_so_many_at_a_time() -> None:
    reward = Lengthy()
    reward.concurrency = 3
    await reward.score("q", _group(*map(str, range(20))))
    assert reward.most == 3
    assert reward.running == 0


async def test_cancelling_stops_all_judgments() -> None:
    reward = Lengthy()
    reward.judgment_limit = None
    task = asyncio.create_task(reward.score("q", _group("…", "a")))
    while not reward.judged["…"]:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reward.running == 0


def test_the_time_limit_of_a_reward_is_the_one_that_was_given() -> None:
    judge = LLMJudge("tiny/qwen3", timeout=7)
    assert (judge.timeout, judge.judgment_limit) == (7, 7)
    assert Similarity(timeout=None).timeout is None
    for reward in (
        CodeTests("assert True", timeout=2, sandbox="unsafe"),
        CodeConsistency(["1"], timeout=2, sandbox="unsafe"),
    ):
        assert reward.timeout == 2


async def test_a_reward_without_a_name_is_called_like_its_class() -> None:
    class Nameless(PointwiseReward):
        async def judge(self, prompt: Prompt, completion: Completion) -> float:
            raise OSError("no")

    with pytest.raises(RewardError, match="reward 'Nameless' failed: OSError: no"):
        await Nameless().score("q", [A])
