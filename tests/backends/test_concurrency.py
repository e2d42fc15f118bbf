from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from backends import EndpointError, Pool, SamplingParams, State
from backends.concurrency import FirstFailure, all_of, run_in_thread
from backends.enumerable import EnumerableBackend
from backends.wrapper import BackendWrapper
from ets_agent import ETS
from tests.enumeration import Valued
from tests.virtual_time import now, timeless


async def test_results_are_in_the_order_of_the_calls() -> None:
    async def after(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    assert await all_of([after(5), after(1), after(3)]) == [5, 1, 3]
    assert await all_of([after(2)]) == [2]
    assert await all_of([]) == []


async def test_the_first_failure_ends_the_others_and_is_raised_with_its_cause() -> None:
    ended: list[str] = []

    async def failing() -> None:
        await asyncio.sleep(0)
        raise KeyError("first") from ValueError("the reason")

    async def waiting() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("waiting")

    with pytest.raises(KeyError, match="first") as caught:
        await all_of([waiting(), failing()])
    assert isinstance(caught.value.__cause__, ValueError)
    assert ended == ["waiting"]


async def test_cancelling_cancels_all_calls() -> None:
    ended: list[int] = []

    async def waiting(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    work = asyncio.create_task(all_of([waiting(0), waiting(1)]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert sorted(ended) == [0, 1]


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _fails(after: int) -> None:
    await _turns(after)
    raise KeyError("first")


async def _slow_to_end(turns: int) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await _turns(turns)


@pytest.mark.parametrize("turns", range(20))
async def test_who_is_cancelled_while_a_failure_ends_the_others_is_cancelled(turns: int) -> None:
    """A connection takes a moment to close; whenever a cancellation comes, it is nothing that another try mends."""
    tries = 0

    async def persistent() -> None:
        nonlocal tries
        for _ in range(5):
            tries += 1
            with suppress(KeyError):
                await all_of([_slow_to_end(3), _fails(2), _slow_to_end(7)])

    work = asyncio.create_task(persistent())
    await _turns(turns)
    assert turns < 3 or tries > 0
    work.cancel()
    await asyncio.wait([work], timeout=60)
    assert work.cancelled()
    assert work.cancelling() == 1


@pytest.mark.parametrize("waits", [False, True], ids=["at the end", "within the block"])
async def test_a_failure_leaves_no_request_to_cancel_behind(waits: bool) -> None:
    current = asyncio.current_task()
    assert current is not None

    async def block() -> None:
        async with FirstFailure() as group:
            group.create_task(_fails(2))
            group.create_task(_slow_to_end(2))
            if waits:
                await asyncio.Event().wait()

    with pytest.raises(KeyError):
        await block()
    assert current.cancelling() == 0


async def test_a_failure_of_the_block_ends_the_tasks_and_is_what_is_raised() -> None:
    ended: list[str] = []

    async def fails_when_cancelled() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("waiting")
            raise KeyError("second")

    async def block() -> None:
        async with FirstFailure() as group:
            group.create_task(fails_when_cancelled())
            await _turns(2)
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        await block()
    assert ended == ["waiting"]


async def test_cancelling_twice_does_not_disturb_those_that_end() -> None:
    ended: list[str] = []

    async def thorough() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await _turns(9)
            ended.append("thorough")

    work = asyncio.create_task(all_of([thorough(), thorough()]))
    for _ in range(3):
        await _turns(2)
        work.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await work
    assert ended == ["thorough"] * 2


async def test_a_failure_after_the_task_was_cancelled_once_is_a_failure() -> None:
    """While it cleans up, say; only what comes in between cancels it."""

    async def cleaning() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            with pytest.raises(KeyError):
                await all_of([_fails(0), _fails(1)])

    work = asyncio.create_task(cleaning())
    await _turns(1)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work


async def test_the_cancellation_tells_which_failure_it_came_upon() -> None:
    work = asyncio.create_task(all_of([_slow_to_end(5), _fails(1)]))
    await _turns(4)
    work.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await work
    assert isinstance(caught.value.__cause__, KeyError)


@timeless
async def test_a_deadline_that_passes_while_a_failure_ends_the_others_is_a_timeout() -> None:
    async def closing() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(2)

    async def failing() -> None:
        await asyncio.sleep(2)
        raise KeyError("first")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3):
            await all_of([closing(), failing()])
    assert now() == 4


class _Failing(BackendWrapper):
    """Fails at 2 s, and has closed its connections at 4 s."""

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        async def refused() -> None:
            await asyncio.sleep(2)
            raise EndpointError("500", status=500)

        async def closing() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(2)

        await all_of([refused(), closing()])
        raise AssertionError


class _Hanging(BackendWrapper):
    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        await asyncio.Event().wait()
        raise AssertionError


def _pool() -> Pool:
    return Pool([kind(EnumerableBackend.random(1, letters="abcd")) for kind in (_Failing, _Hanging)])


@pytest.mark.parametrize("moment", [1.0, 2.0, 3.0, 4.0, 5.0])
@timeless
async def test_a_pools_call_can_be_cancelled_at_any_moment(moment: float) -> None:
    pool = _pool()
    start = await pool.begin("a question", max_tokens=4, params=SamplingParams())
    call = asyncio.create_task(pool.extend(start, 2, tokens=1, seed=0))
    await asyncio.sleep(moment)
    call.cancel()
    await asyncio.wait([call], timeout=60)
    assert call.cancelled()
    assert now() == max(moment, 4.0 if moment >= 2 else moment + 2)


@pytest.mark.parametrize("timeout", [1.0, 3.0, 5.0])
@timeless
async def test_a_run_over_a_pool_whose_members_fail_keeps_its_deadline(timeout: float) -> None:  # noqa: ASYNC109
    ets = ETS(_pool(), Valued(), num_candidates=4, num_rollouts=3, block_size=2, max_tokens=8, seed=5)
    result = await ets.complete("a question", timeout=timeout)
    assert result.finish_reason == "timeout"
    assert now() <= max(timeout, 2.0) + 2.0


async def test_code_that_is_not_async_can_await_something_within_an_event_loop() -> None:
    async def working(result: int) -> int:
        await asyncio.sleep(0)
        return 1 // result

    assert run_in_thread(working(1)) == 1
    with pytest.raises(ZeroDivisionError):
        run_in_thread(working(0))
