"""Time limits of judgements."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from rewards.errors import RewardTimeoutError

T = TypeVar("T")


async def within(seconds: float | None, work: Awaitable[T], *, what: str) -> T:
    """Await something, but no longer than so many seconds; it is cancelled then.

    Args:
        seconds: The limit; None for none.
        work: What to await.
        what: What took too long, for the message.

    Raises:
        RewardTimeoutError: The limit has passed. A timeout of the work's own is passed on as it is.
    """
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            return await work
    except TimeoutError as error:
        if scope.expired():
            raise RewardTimeoutError(f"{what} took longer than {seconds:g} s") from error
        raise
