"""Closing what was built for one run, without its answer waiting for that."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

_log = logging.getLogger(__name__)

PATIENCE = 0.1
"""Seconds that an answer waits for what takes long to close."""


class _Closable(Protocol):
    async def aclose(self) -> None: ...


class Closing:
    """Closes things; what takes longer goes on by itself until `wait`.

    A judge may wait for the batch that its model is in before it lets go of it. An answer whose time is over must not.
    """

    def __init__(self) -> None:
        """Nothing is being closed."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self, thing: _Closable) -> None:
        """Close something, waiting for it but a moment; a failure is logged, because there is an answer already."""
        task = asyncio.create_task(_closed(thing))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait([task], timeout=PATIENCE)

    async def wait(self) -> None:
        """Wait until all is closed."""
        if self._tasks:
            await asyncio.wait(list(self._tasks))


async def _closed(thing: _Closable) -> None:
    try:
        await thing.aclose()
    except Exception:
        _log.warning("closing %r failed", thing, exc_info=True)
