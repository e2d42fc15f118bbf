"""Calls at the same time, of which the first to fail ends the others."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class FirstFailure(asyncio.TaskGroup):
    """A task group whose error is that of the task that failed first, and not a group of errors."""

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Wait for all tasks, and cancel them when one fails."""
        try:
            await super().__aexit__(kind, error, trace)
        except BaseExceptionGroup as errors:
            first = errors.exceptions[0]
            raise first from first.__cause__


async def all_of(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Await calls at the same time and return what they return, in order; the first error is raised as it is."""
    if len(calls) == 1:
        return [await calls[0]]
    async with FirstFailure() as group:
        tasks = [group.create_task(call) for call in calls]
    return [task.result() for task in tasks]
