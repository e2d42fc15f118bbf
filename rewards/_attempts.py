"""Trying all of something: what goes wrong is data, unless everything does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from rewards.errors import RewardError, failed

A = TypeVar("A")
T = TypeVar("T")


async def attempts(
    work: Callable[[A], Awaitable[T]], items: Sequence[A], *, at_once: int | None = None
) -> list[T | Exception]:
    """Return what comes of each item, in order: what the work returns, or the error that it raises.

    Args:
        work: What to do with an item.
        items: All of them.
        at_once: How many at the same time; None for all.
    """
    places = asyncio.Semaphore(at_once or max(1, len(items)))

    async def attempt(item: A) -> T | Exception:
        async with places:
            try:
                return await work(item)
            except Exception as error:
                return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(attempt(item)) for item in items]
    return [task.result() for task in tasks]


def failures(outcomes: Sequence[object], *, what: str) -> list[Exception]:
    """Return those outcomes that are errors.

    Args:
        outcomes: What came of each attempt.
        what: What was tried, for messages.

    Raises:
        RewardError: All are; it stands for them, and is the first or caused by it.
    """
    found = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if found and len(found) == len(outcomes):
        if isinstance(found[0], RewardError):
            raise found[0]
        raise failed(what, found[0]) from found[0]
    return found
