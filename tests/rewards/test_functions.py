from __future__ import annotations

import asyncio
import functools
import logging
import math
import sys
import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from backends import Completion
from rewards import Reward, RewardError, RewardSpecError, RewardTimeoutError, build
from rewards.functions import FunctionReward, GroupFunctionReward

A, B = Completion(text="a"), Completion(text="bb")
FAILED = Completion(text="", finish_reason="error")


class _AsyncCallable:
    async def __call__(self, completion: Completion) -> float:
        return len(completion.text)


async def _length(completion: Completion, factor: int = 1) -> float:
    return len(completion.text) * factor


@pytest.mark.parametrize(
    "function",
    [lambda c: len(c.text), _length, _AsyncCallable(), functools.partial(_length, factor=1), lambda c: _length(c)],
    ids=["sync", "async", "async-callable", "partial", "lambda-of-async"],
)
async def test_functions_of_any_kind_judge(function: Any) -> None:
    assert await build(function).score("q", [A, FAILED, B]) == [1.0, None, 2.0]


async def test_group_function_sees_all_draws_that_did_not_fail() -> None:
    seen: list[list[Completion]] = []

    def rank(group: list[Completion]) -> list[float | None]:
        seen.append(list(group))
        group.clear()
        return [None, 5]

    group = [A, FAILED, B]
    assert await GroupFunctionReward(rank).score("q", group) == [None, None, 5.0]
    assert seen == [[A, B]]
    assert group == [A, FAILED, B]


async def test_async_group_function() -> None:
    async def sizes(group: list[Completion]) -> list[float]:
        return [len(c.text) for c in group]

    assert await GroupFunctionReward(sizes).score("q", (A, B)) == [1.0, 2.0]


@pytest.mark.parametrize("group", [[], [FAILED, FAILED]])
async def test_nothing_to_judge(group: list[Completion]) -> None:
    def never(_: object) -> float:
        raise AssertionError

    assert await FunctionReward(never).score("q", group) == [None] * len(group)
    assert await GroupFunctionReward(never).score("q", group) == [None] * len(group)


async def test_sync_functions_do_not_block_the_loop() -> None:
    released = threading.Event()

    def wait(completion: Completion) -> float:
        return float(released.wait(timeout=30))

    task = asyncio.create_task(FunctionReward(wait).score("q", [A]))
    await asyncio.sleep(0)
    released.set()  # reached only if the function runs in a thread
    assert await task == [1.0]


async def test_async_functions_judge_at_once() -> None:
    both = asyncio.Barrier(2)

    async def meet(completion: Completion) -> float:
        await both.wait()
        return 1.0

    async with asyncio.timeout(30):
        assert await FunctionReward(meet).score("q", [A, B]) == [1.0, 1.0]


async def test_functions_may_forbid_a_response() -> None:
    assert await FunctionReward(lambda c: float("-inf")).score("q", [A]) == [-math.inf]
    assert await GroupFunctionReward(lambda group: [1, -math.inf]).score("q", [A, B]) == [1, -math.inf]


@pytest.mark.parametrize("value", [True, 1, np.float32(1), np.bool_(True), Decimal(1)])
async def test_whatever_is_a_number_becomes_a_float(value: Any) -> None:
    (verdict,) = await FunctionReward(lambda c: value).score("q", [A])
    assert (verdict, type(verdict)) == (1.0, float)


@pytest.mark.parametrize(
    "value", ["1", float("nan"), float("inf"), [1], 1j, 10**400, Decimal("sNaN"), np.ones(2)], ids=str
)
async def test_whatever_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(RewardError, match="'mine' must return finite numbers, -inf or None"):
        await FunctionReward(lambda c: value, name="mine").score("q", [A])
    with pytest.raises(RewardError, match="'mine' must return finite numbers, -inf or None"):
        await GroupFunctionReward(lambda group: [value], name="mine").score("q", [A])


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_failure_on_one_completion_is_no_verdict_and_logged(
    asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def sync(completion: Completion) -> float:
        return 1 / (len(completion.text) - 1)

    async def coroutine(completion: Completion) -> float:
        return sync(completion)

    reward = FunctionReward(coroutine if asynchronous else sync, name="mine")
    with caplog.at_level(logging.WARNING, "rewards"):
        assert await reward.score("q", [A, B]) == [None, 1.0]
    assert "'mine' gave no verdict on 1 of 2 responses: ZeroDivisionError" in caplog.text
    with pytest.raises(RewardError, match="'mine' failed: ZeroDivisionError") as caught:
        await reward.score("q", [A, A])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_failing_group_function() -> None:
    def fail(group: list[Completion]) -> list[float]:
        raise KeyError("x")

    with pytest.raises(RewardError, match="'fail' failed: KeyError: 'x'"):
        await GroupFunctionReward(fail).score("q", [A])


@pytest.mark.parametrize(
    ("value", "message"), [([1.0], "returned 1 values for 2"), (1.0, "must return a list, not float")]
)
async def test_group_function_must_return_one_value_each(value: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        await GroupFunctionReward(lambda group: value).score("q", [A, B])


async def test_cancelling_stops_all_calls() -> None:
    started, stopped = asyncio.Barrier(3), []

    async def hang(completion: Completion) -> float:
        try:
            await started.wait()
            await asyncio.Event().wait()
        finally:
            stopped.append(completion)
        return 0.0

    task = asyncio.create_task(FunctionReward(hang).score("q", [A, B]))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(stopped) == 2


@pytest.mark.parametrize("function", [lambda: 1.0, lambda a, b: 1.0])
def test_functions_of_another_shape_are_refused(function: Any) -> None:
    with pytest.raises(RewardSpecError, match="must take one completion"):
        build(function)


def test_name_is_the_functions() -> None:
    assert build(_length).name == "_length"
    assert build(_AsyncCallable()).name == "_AsyncCallable"


async def test_a_function_may_ask_for_the_prompt() -> None:
    @functools.cache
    def echoes(completion: Completion, prompt: str) -> bool:
        return prompt in completion.text

    async def echoed(group: list[Completion], *, prompt: str) -> list[bool]:
        return [prompt in completion.text for completion in group]

    assert await build(echoes).score("b", [A, B]) == [0.0, 1.0]
    assert await GroupFunctionReward(echoed).score("b", [A, B]) == [0.0, 1.0]


async def test_functions_have_a_time_limit() -> None:
    async def hang(judged: Any) -> float:
        await asyncio.Event().wait()
        return 0.0

    for reward in (
        FunctionReward(hang, name="mine", timeout=0.05),
        GroupFunctionReward(hang, name="mine", timeout=0.05),
    ):
        with pytest.raises(RewardTimeoutError, match=r"reward 'mine' took longer than 0.05 s"):
            await reward.score("q", [A, B])


async def test_a_thread_that_takes_too_long_is_left_behind() -> None:
    released = threading.Event()
    with pytest.raises(RewardTimeoutError):
        await FunctionReward(lambda c: released.wait(30), timeout=0.05).score("q", [A])
    released.set()


def hang_on_b(completion: Completion, *, factor: float = 1.0, prompt: str = "") -> float:
    """Take for ever on "bb"; in this module, so that a worker process can import it."""
    while completion.text == "bb":
        pass
    return factor * len(completion.text + prompt)


async def test_a_process_that_takes_too_long_is_killed() -> None:
    reward = FunctionReward(hang_on_b, process=True, timeout=0.3, arguments={"factor": 2.0})
    try:
        assert await reward.session().score("qq", [A, B]) == [6.0, None]
        with pytest.raises(RewardTimeoutError, match="'hang_on_b' took longer"):
            await reward.score("q", [B])
    finally:
        await reward.aclose()


async def _never(completion: Completion) -> float:
    return 0.0


@pytest.mark.parametrize(
    ("function", "message"), [(_never, "process=True is for sync functions"), (lambda c: 0.0, "importable by name")]
)
def test_what_cannot_run_in_a_process_is_refused(function: Any, message: str) -> None:
    with pytest.raises(RewardSpecError, match=message):
        FunctionReward(function, process=True)


async def test_a_function_that_hangs_holds_up_no_other() -> None:
    released = threading.Event()
    hung = FunctionReward(lambda c: released.wait(30), timeout=0.1)
    with pytest.raises(RewardTimeoutError):
        await asyncio.gather(*(hung.score("q", [A]) for _ in range(40)))
    assert await FunctionReward(lambda c: 1.0, timeout=10).score("q", [A]) == [1.0]
    released.set()


async def test_stop_iteration_is_a_failure_like_any_other() -> None:
    with pytest.raises(RewardError, match="failed: RuntimeError: StopIteration"):
        await FunctionReward(lambda c: next(iter(())), timeout=10).score("q", [A])


def leave(completion: Completion) -> float:
    """End the process on "a", as `argparse` does with what it does not understand."""
    if completion.text == "a":
        sys.exit(2)
    return 1.0


async def leave_async(completion: Completion) -> float:
    return leave(completion)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FunctionReward(leave, name="leave", timeout=10),
        lambda: FunctionReward(leave_async, name="leave", timeout=10),
        lambda: FunctionReward(leave, name="leave", timeout=10, process=True),
    ],
    ids=["sync", "async", "process"],
)
async def test_a_function_that_asks_for_the_end_of_the_process_has_no_verdict(make: Callable[[], Reward]) -> None:
    reward = make()
    try:
        assert await reward.score("q", [A, B]) == [None, 1.0]
        assert "SystemExit: 2" in reward.problems[0]
    finally:
        await reward.aclose()


async def test_a_function_that_awaits_what_was_cancelled_has_no_verdict() -> None:
    async def wait(completion: Completion) -> float:
        if completion.text == "a":
            gone = asyncio.get_running_loop().create_future()
            gone.cancel()
            await gone
        return 1.0

    reward = FunctionReward(wait, name="wait")
    assert await reward.score("q", [A, B]) == [None, 1.0]
    assert "failed: CancelledError" in reward.problems[0]
    with pytest.raises(RewardError, match="failed: CancelledError"):
        await reward.score("q", [A])


async def test_a_thread_that_raises_what_looks_like_a_cancellation_has_no_verdict() -> None:
    def cancelled(completion: Completion) -> float:
        raise asyncio.CancelledError

    with pytest.raises(RewardError, match="RuntimeError: CancelledError"):
        await FunctionReward(cancelled, timeout=10).score("q", [A])
