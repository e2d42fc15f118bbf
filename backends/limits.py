"""A limit on how many calls are under way at once, with a bounded queue; several backends can share one."""

from __future__ import annotations

import asyncio
import bisect
import itertools
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from backends.base import Backend, Completion, Prompt, SamplingParams, State
from backends.concurrency import FirstFailure
from backends.contract import is_count
from backends.errors import BackendError, QueueFullError
from backends.wrapper import BackendWrapper, layers

A = TypeVar("A")
R = TypeVar("R")


class Turnstile:
    """Tasks that wait in line until there is room for them; what room is, is said by those who derive from it.

    It belongs to no event loop: threads with loops of their own may share it, one after the other or at once. A task
    that was cancelled leaves nothing behind, also in the moment between being let in and hearing of it.
    """

    def __init__(self) -> None:
        """Nobody waits yet."""
        # Reentrant, because the garbage collector may close an abandoned coroutine, which leaves the line or gives
        # back its room, while this thread is in here, between any two steps. What must not be divided is one call of C.
        self._lock = threading.RLock()
        self._line: list[tuple[int, int, _Waiter]] = []
        """Rank, ticket and waiter, in this order."""
        self._tickets = itertools.count()
        self._moving = False
        self._again = False

    @property
    def waiting(self) -> int:
        """Tasks that wait."""
        return len(self._line)

    def _take(self, size: int) -> bool:
        """Take room and return True; return False where there is none yet. An error is for whoever asked."""
        raise NotImplementedError

    def _give(self, size: int) -> None:
        """Give room back that was taken."""
        raise NotImplementedError

    def _check_line(self) -> None:
        """Raise an error if nobody else may wait."""

    async def _enter(self, size: int = 1, *, rank: int = 0, begun: bool = False) -> None:
        """Take room, once there is some and all have theirs who asked before, or have a lower rank.

        What was ``begun`` may always wait.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            if not self._line and self._take(size):
                return
            if not begun:
                self._check_line()
            waiter = _Waiter(loop, size, (rank, next(self._tickets)), begun=begun)
            bisect.insort(self._line, (*waiter.place, waiter))
            self._move_up()  # The collector may have made room since that was asked.
        try:
            await waiter.woken
        except BaseException:
            self._forget(waiter)
            raise
        if waiter.refused is not None:
            raise waiter.refused

    def _leave(self, size: int = 1) -> None:
        """Give room back, to whoever is first in line."""
        with self._lock:
            self._give(size)
            self._move_up()

    def _move_up(self) -> None:
        """Let in those for whom there is room, in order; the lock is held."""
        self._again = True  # If this is called from within itself, by the collector, the loop goes round once more.
        while self._again and not self._moving:
            self._moving, self._again = True, False
            try:
                while self._line and self._let_in(self._line[0][-1]):
                    pass
            finally:
                self._moving = False

    def _let_in(self, waiter: _Waiter) -> bool:
        """Let the first in line in, or refuse it; return False where there is no room for it yet."""
        try:
            waiter.entered = self._take(waiter.size)
        except BackendError as error:
            waiter.refused = error
        if waiter.gone:
            self._give_back(waiter)
            return True
        if not waiter.entered and waiter.refused is None:
            return False
        self._drop(waiter)
        try:
            waiter.loop.call_soon_threadsafe(waiter.wake)
        except RuntimeError:  # Its loop was closed with the task still in it: nobody is there to be let in.
            self._give_back(waiter)
        return True

    def _forget(self, waiter: _Waiter) -> None:
        with self._lock:
            waiter.gone = True
            self._drop(waiter)
            self._give_back(waiter)
            self._move_up()

    def _give_back(self, waiter: _Waiter) -> None:
        if waiter.entered:
            waiter.entered = False
            self._give(waiter.size)

    def _drop(self, waiter: _Waiter) -> None:
        """Take a waiter out of the line, if it is still there; the lock is held."""
        with suppress(ValueError):
            self._line.remove((*waiter.place, waiter))


class _Waiter:
    """One task's wait.

    ``begun`` says whether it goes on with something that was begun, ``entered`` whether it was let in already,
    ``woken`` that it has heard of it, ``gone`` that it waits no more.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, size: int, place: tuple[int, int], *, begun: bool) -> None:
        self.loop = loop
        self.size = size
        self.place = place
        self.begun = begun
        self.woken: asyncio.Future[None] = loop.create_future()
        self.entered = False
        self.gone = False
        self.refused: BackendError | None = None

    def wake(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)


class Limiter(Turnstile):
    """A number of places, given out in the order in which they were asked for: ``async with limiter: …``.

    Threads with event loops of their own may share it. A task that holds a place must not ask for another one of the
    same limiter, or all places may be held by those who wait.

    Args:
        max_concurrency: Number of places.
        max_queue: Most who may wait for a place; None for any number, 0 for nobody. What has been begun always may, and
            does not count: an endpoint refuses further responses, and finishes those that it has begun.

    Raises:
        BackendError: A number is out of its range.
    """

    def __init__(self, max_concurrency: int, *, max_queue: int | None = None) -> None:
        """Nobody holds a place yet."""
        super().__init__()
        if not is_count(max_concurrency, 1):
            raise BackendError(f"max_concurrency is {max_concurrency!r}; allowed: a whole number of at least 1")
        if max_queue is not None and not is_count(max_queue, 0):
            raise BackendError(f"max_queue is {max_queue!r}; allowed: a whole number of at least 0, or None")
        self.max_concurrency = max_concurrency
        self.max_queue = max_queue
        self._active = 0

    @classmethod
    def of(cls, places: Limiter | int) -> Limiter:
        """Return a limiter as it is, or a new one with so many places.

        Raises:
            BackendError: The number is out of its range.
        """
        return places if isinstance(places, Limiter) else cls(places)

    @property
    def active(self) -> int:
        """Places that are taken."""
        return self._active

    async def map(self, call: Callable[[A], Coroutine[Any, Any, R]], items: Sequence[A], *, rank: int = 0) -> list[R]:
        """Call something with each item, in a place each; the first to fail cancels the others, and is what is raised.

        The items are work that was begun, so none is refused, however many wait. A call is made when there is a place
        for it; until then it is only its argument, for tasks and frames in the tens of thousands keep the garbage
        collector busy.

        Args:
            call: What to await.
            items: Its arguments.
            rank: Those with lower ones go first.
        """
        if len(items) == 1:
            async with self.place(rank=rank, begun=True):
                return [await call(items[0])]
        tasks: list[asyncio.Task[R]] = []
        async with FirstFailure() as group:
            for item in items:
                await self._enter(rank=rank, begun=True)
                task = group.create_task(call(item))
                # Not within the task: one that is cancelled before its first step never runs at all.
                task.add_done_callback(lambda _: self._leave())
                tasks.append(task)
        return [task.result() for task in tasks]

    def place(self, *, rank: int = 0, begun: bool = False) -> AbstractAsyncContextManager[None]:
        """Return a place, to be taken by ``async with``.

        Args:
            rank: Those with lower ones go first.
            begun: Whether something goes on that was begun; otherwise entering raises `QueueFullError` where as many
                wait already as may.
        """
        return _Place(self, rank, begun)

    async def __aenter__(self) -> None:
        """Take a place.

        Raises:
            QueueFullError: There is none, and as many wait already as may.
        """
        await self._enter()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the place."""
        self._leave()

    def _take(self, size: int) -> bool:
        if self._active >= self.max_concurrency:
            return False
        self._active += size
        return True

    def _give(self, size: int) -> None:
        self._active -= size

    def _check_line(self) -> None:
        if self.max_queue is None:
            return
        waiting = sum(not waiter.begun for _, _, waiter in self._line)
        if waiting >= self.max_queue:
            raise QueueFullError(
                f"{self._active} calls are under way and {waiting} wait already, as many as may "
                f"(max_concurrency={self.max_concurrency}, max_queue={self.max_queue}); try again later"
            )


@dataclass(frozen=True, slots=True)
class _Place(AbstractAsyncContextManager[None]):
    limiter: Limiter
    rank: int
    begun: bool

    async def __aenter__(self) -> None:
        await self.limiter._enter(rank=self.rank, begun=self.begun)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.limiter._leave()


class Limited(BackendWrapper):
    """Lets only so many calls of a backend be under way at once; the others wait in line.

    Args:
        inner: The backend that does the work.
        limiter: The places, which other backends may share, or how many there are for this one alone.

    Raises:
        BackendError: A backend within has the same limiter: calls that hold a place would wait for another one.
    """

    def __init__(self, inner: Backend, limiter: Limiter | int) -> None:
        """Keep the limiter."""
        super().__init__(inner)
        self.limiter = Limiter.of(limiter)
        if any(getattr(part, "limiter", None) is self.limiter for part in layers(inner)):
            raise BackendError("a backend within has the same limiter already; give it to one of them")

    async def begin(self, prompt: Prompt, *, max_tokens: int, params: SamplingParams) -> State:
        """Return the empty response to a prompt; see `Backend.begin`."""
        async with self.limiter:
            return await self.inner.begin(prompt, max_tokens=max_tokens, params=params)

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        """Draw n successors of a state; see `Backend.extend`."""
        async with self.limiter:
            return await self.inner.extend(state, n, tokens=tokens, seed=seed)

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        """Complete each state n times; see `Backend.rollout`."""
        async with self.limiter:
            return await self.inner.rollout(states, n, seed=seed)

    async def score(self, states: Sequence[State], completions: Sequence[Sequence[Completion]]) -> list[list[float]]:
        """Return the log-probabilities of completions (nats); see `Backend.score`."""
        async with self.limiter:
            return await self.inner.score(states, completions)
