from __future__ import annotations

import asyncio

import pytest

from backends.concurrency import all_of


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
