"""Closing what was built for one run, without its answer waiting for that."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from ets_agent.errors import RunningLoopError

_log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = 0.1
"""Seconds that an answer waits for what takes long to close."""
_LOOK = 0.02
"""Seconds between looks at what is being closed in other event loops."""


class _Closable(Protocol):
    async def aclose(self) -> None: ...


class Closing:
    """Closes things; what takes longer goes on by itself until `wait`.

    A judge may wait for the batch that its model is in before it lets go of it. An answer whose time is over must not.
    Threads with event loops of their own may share it.
    """

    def __init__(self) -> None:
        """Nothing is being closed."""
        self._lock = threading.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self, thing: _Closable) -> None:
        """Close something, waiting for it but a moment; a failure is logged, because there is an answer already."""
        task = asyncio.create_task(_closed(thing))
        with self._lock:
            self._tasks.add(task)
        task.add_done_callback(self._forget)
        await asyncio.wait([task], timeout=PATIENCE)

    async def wait(self) -> None:
        """Wait until all is closed that is being closed now, but for what is in an event loop that does not run."""
        await self._wait_here()
        with self._lock:
            others = list(self._tasks)
        # Another loop's tasks cannot be awaited, and it may stop without notice.
        while any(not task.done() and task.get_loop().is_running() for task in others):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK)

    def run(self, work: Coroutine[Any, Any, T], *, blocking: str, instead: str) -> T:
        """Return what a coroutine returns that closes things here, from a thread that has no event loop.

        Args:
            work: The coroutine, which is closed if it cannot be run.
            blocking: What the caller called, for the message.
            instead: What to call in an event loop.

        Raises:
            RunningLoopError: An event loop is running in this thread.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._until_closed(work))
        work.close()
        raise RunningLoopError(f"{blocking} would block the running event loop: use '{instead}' here")

    async def _until_closed(self, work: Coroutine[Any, Any, T]) -> T:
        """Await something in an event loop of its own, which must not end before all is closed."""
        try:
            return await work
        finally:
            await self._wait_here()

    async def _wait_here(self) -> None:
        """Wait until all is closed that is being closed in this event loop."""
        here = asyncio.get_running_loop()
        with self._lock:
            mine = [task for task in self._tasks if task.get_loop() is here]
        if mine:
            await asyncio.wait(mine)

    def _forget(self, task: asyncio.Task[None]) -> None:
        with self._lock:
            self._tasks.discard(task)


async def _closed(thing: _Closable) -> None:
    try:
        await thing.aclose()
    except Exception:
        _log.warning("closing %r failed", thing, exc_info=True)
