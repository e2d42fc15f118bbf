"""Threads for work that may never end: nothing waits for them, neither other work nor the end of the process."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from rewards.errors import described

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """Do some work in a thread of its own; if the wait is cancelled, the thread is left behind."""
    future: Future[T] = Future()
    threading.Thread(target=_do, args=(work, future), name="ets-reward", daemon=True).start()
    return await asyncio.wrap_future(future)


class Threads:
    """Up to ``size`` threads that work off a queue; they stay until closed, and end with the process."""

    def __init__(self, size: int, *, name: str) -> None:
        """Start none yet."""
        self._size = size
        self._name = name
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._started = 0

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have some work done."""
        future: Future[T] = Future()
        self._queue.put((work, future))
        if self._started < self._size:
            self._started += 1
            threading.Thread(target=_serve, args=(self._queue,), name=self._name, daemon=True).start()
        return future

    def anew(self) -> Threads:
        """Return others like these, none of them started."""
        return Threads(self._size, name=self._name)

    def close(self) -> None:
        """Let the threads end when they have worked off what is there."""
        for _ in range(self._started):
            self._queue.put(None)
        self._started = 0


def _serve(tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]) -> None:
    while (task := tasks.get()) is not None:
        _do(*task)
        del task  # A thread that waits must not keep anything alive.


def _do(work: Callable[[], T], future: Future[T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:
        future.set_exception(_raisable(error))
    else:
        future.set_result(result)


def _raisable(error: BaseException) -> Exception:
    """Return an error that is an error for whoever waits, too.

    There, SystemExit would end the process, CancelledError look like the caller's own, and StopIteration end the
    coroutine.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(described(error))
    wrapped.__cause__ = error
    return wrapped
