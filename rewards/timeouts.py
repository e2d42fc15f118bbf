"""Awaiting foreign code: for so long, and so that whatever it raises is an error of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from backends.concurrency import cancellation_asked
from rewards.errors import RewardTimeoutError, failed

T = TypeVar("T")


async def within(seconds: float | None, work: Awaitable[T], *, what: str) -> T:
    """Await something, but no longer than so many seconds; it is cancelled then.

    Args:
        seconds: The limit; None for none.
        work: What to await.
        what: What it is, for messages.

    Raises:
        RewardTimeoutError: The limit has passed. A timeout of the work's own is passed on as it is.
        RewardError: It asked for the end of the process, or was cancelled by nobody who awaits it, as by awaiting a
            task that was.
        Exception: What else it raises.
    """
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            return await _contained(work, what)
    except TimeoutError as error:
        if scope.expired():
            raise RewardTimeoutError(f"{what} took longer than {seconds:g} s") from error
        raise


async def _contained(work: Awaitable[T], what: str) -> T:
    try:
        return await work
    except asyncio.CancelledError as error:
        if cancellation_asked():
            raise
        raise failed(what, error) from error
    except SystemExit as error:  # As `argparse` raises it.
        raise failed(what, error) from error
