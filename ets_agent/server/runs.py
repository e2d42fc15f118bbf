"""Carries out several plans at once, for one client, for as long as that client is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.types import Receive

from ets_agent.guided import GuidedReasoning, NoPlaceError, Plan
from ets_agent.results import Event
from ets_agent.server.errors import ClientGoneError, shutting_down

T = TypeVar("T")

_log = logging.getLogger(__name__)

LET_GO_SECONDS = 5.0
"""Seconds that a run which was ended is waited for. It keeps its place for as long as the model works on it."""
_LAST_SECONDS = 0.5
"""The same while the server is being stopped."""


async def follow(reasoning: GuidedReasoning, plans: Sequence[Plan]) -> AsyncGenerator[tuple[int, Event | NoPlaceError]]:
    """Carry out plans at the same time and yield their events as they come, each with the number of its plan.

    A run waits until its event was taken, so a slow reader slows the runs down and nothing piles up. Leaving early
    ends all of them, and so does one that fails. One that gets no place in time does not fail: others have had one. Its
    error comes as its only event, after those of all others, because the first answer decides whether there is any.

    Raises:
        NoPlaceError: None of them got a place in time.
        Exception: What the first one to fail has raised; see `GuidedReasoning.run`.
    """
    told: asyncio.Queue[tuple[int, Event | asyncio.Task[None]]] = asyncio.Queue()
    taken = [asyncio.Semaphore(0) for _ in plans]
    late: dict[int, NoPlaceError] = {}
    over = False

    async def run(index: int) -> None:
        try:
            async with aclosing(reasoning.run(plans[index])) as events:
                async for event in events:
                    if over:  # The model took no notice of being cancelled; nobody will take this event.
                        return
                    told.put_nowait((index, event))
                    await taken[index].acquire()
        except NoPlaceError as error:
            late[index] = error

    tasks = [asyncio.create_task(run(index)) for index in range(len(plans))]
    for index, task in enumerate(tasks):
        task.add_done_callback(lambda task, index=index: told.put_nowait((index, task)))  # type: ignore[misc]
    try:
        # All ask for their places before anything is told: where the queue is full for one of them, nothing is begun.
        await asyncio.sleep(0)
        for task in tasks:
            if task.done():
                task.result()
        left = len(tasks)
        while left:
            index, what = await told.get()
            if isinstance(what, asyncio.Task):
                what.result()
                left -= 1
                continue
            yield index, what
            taken[index].release()
        if len(late) == len(plans):
            raise late[0]
        for index, error in sorted(late.items()):
            yield index, error
    finally:
        over = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Work:
    """What is being done for clients: ended when a client hangs up, and when the server has waited long enough."""

    def __init__(self) -> None:
        """Nothing is being done."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._ending = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether what is not done by now will not be done."""
        return self._ending.is_set()

    async def attend(self, work: Coroutine[Any, Any, T], receive: Receive) -> T:
        """Do something for a client while it is there.

        Args:
            work: What to do.
            receive: Where the server tells that the client has hung up; the request's body was read already.

        Raises:
            ClientGoneError: The client has hung up; the work was ended.
            ApiError: The server is shutting down.
        """
        if self._closed:
            work.close()
            raise shutting_down()
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await self._race(task, asyncio.create_task(_hang_up(receive)))

    async def until_ending(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what is no work for a client yet, and is broken off when all work is ended: reading a request, say.

        Raises:
            ApiError: The server is shutting down.
        """
        return await self._race(asyncio.create_task(work))

    async def _race(self, task: asyncio.Task[T], *gone: asyncio.Task[None]) -> T:
        """Return a task's result, unless its client is gone first or all work is ended."""
        others: list[asyncio.Task[Any]] = [*gone, asyncio.create_task(self._ending.wait())]
        for each in (task, *gone):
            each.add_done_callback(_heard)
        try:
            await asyncio.wait({task, *others}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            over = task.done()
            for each in (task, *others):
                each.cancel()
            await asyncio.wait({task, *others}, timeout=_LAST_SECONDS if self.ended else LET_GO_SECONDS)
            if not task.done():
                _log.warning("a run goes on that was ended: the model does not let go of it")
        if over and not task.cancelled():
            return task.result()
        if self.ended:
            raise shutting_down()
        if over:
            raise RuntimeError("a run was cancelled by nobody")
        raise ClientGoneError

    async def close(self, seconds: float) -> None:
        """Begin nothing any more; wait for what is being done, then end it.

        Args:
            seconds: Longest time to wait.
        """
        self._closed = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        self._ending.set()


def _heard(task: asyncio.Task[Any]) -> None:
    """Take note of how a run has ended that nobody waits for, lest asyncio complains."""
    if not task.cancelled():
        task.exception()


async def _hang_up(receive: Receive) -> None:
    """Return when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
