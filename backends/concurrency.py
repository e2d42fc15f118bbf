"""Calls at the same time: the first to fail, or closing, ends the others; and calls from code that is not async."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class FirstFailure:
    """Tasks that end together: once one fails, or the ``async with`` block does, the others are cancelled.

    What is raised is the first failure, not a group of all. Unlike with `asyncio.TaskGroup`, whoever is cancelled while
    the others end is cancelled, and does not see the failure, which they may take for one that another try mends; and a
    failure leaves no request to cancel behind, which a deadline around it would take for one of somebody else's.
    """

    def __init__(self) -> None:
        """There are no tasks yet."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failure: BaseException | None = None
        self._ending = False
        self._within = False
        self._interrupted = False

    async def __aenter__(self) -> Self:
        """Begin the block."""
        parent = asyncio.current_task()
        assert parent is not None, "this is for tasks only"
        self._parent = parent
        self._cancelling = parent.cancelling()
        self._within = True
        return self

    def create_task(self, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that the block waits for at its end."""
        task = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for all tasks."""
        self._within = False
        if self._interrupted:
            self._parent.uncancel()
        if error is not None:
            self._failure = self._failure or error
            self._end()
        cancelled = error if isinstance(error, asyncio.CancelledError) else None
        while self._tasks:
            try:
                await asyncio.wait(self._tasks)
            except asyncio.CancelledError as request:
                cancelled = request
                self._end()
        failure, self._failure = self._failure, None
        if cancelled is not None and self._parent.cancelling() > self._cancelling:
            raise cancelled from (failure if failure is not cancelled else cancelled.__cause__)
        if failure is not None and failure is not error:
            raise failure from failure.__cause__

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None or self._failure is not None:
            return
        self._failure = error
        self._end()
        if self._within:  # It may wait for something that is of no use any more.
            self._interrupted = True
            self._parent.cancel()

    def _end(self) -> None:
        """Cancel all tasks, once: those that clean up are not disturbed."""
        if not self._ending:
            self._ending = True
            for task in self._tasks:
                task.cancel()


async def all_of(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Await calls at the same time and return what they return, in order; the first error is raised as it is."""
    if len(calls) == 1:
        return [await calls[0]]
    async with FirstFailure() as group:
        tasks = [group.create_task(call) for call in calls]
    return [task.result() for task in tasks]


def cancellation_asked() -> bool:
    """Whether somebody has cancelled the running task; a `CancelledError` is a failure of what it awaits otherwise."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


class UnderWay:
    """What is under way in something that can be closed, in whichever event loops; closing ends it.

    Each piece of work has a limit of time, without which it would have to be told apart from its caller: work that ends
    by it raises `TimeoutError`, and whoever awaits it is not cancelled.
    """

    def __init__(self) -> None:
        """Nothing is."""
        self._limits: set[tuple[asyncio.AbstractEventLoop, asyncio.Timeout]] = set()

    @contextlib.contextmanager
    def noted(self, limit: asyncio.Timeout) -> Iterator[None]:
        """Keep the limit of some work of the running loop while it is under way.

        Within, look first whether it is closed already: `end` does not end what begins after it.
        """
        noted = asyncio.get_running_loop(), limit
        self._limits.add(noted)
        try:
            yield
        finally:
            self._limits.discard(noted)

    def end(self) -> None:
        """End all of it; for calls within a running loop."""
        here = asyncio.get_running_loop()
        for loop, limit in list(self._limits):
            if loop is here:
                _expire(limit)
            else:
                with contextlib.suppress(RuntimeError):  # That loop is closed, and with it all that was in it.
                    loop.call_soon_threadsafe(_expire, limit)


def _expire(limit: asyncio.Timeout) -> None:
    with contextlib.suppress(RuntimeError):  # It is over already.
        limit.reschedule(0.0)


def run_in_thread(work: Coroutine[Any, Any, T]) -> T:
    """Await something to its end in a thread with an event loop of its own, whether or not one runs here."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="ets-run", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
