"""A limit on how many calls are under way at once, with a bounded queue; several backends can share one."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from types import TracebackType

from backends.base import Backend, Completion, Prompt, SamplingParams, State
from backends.errors import BackendError, QueueFullError
from backends.wrapper import BackendWrapper


class Limiter:
    """A number of places, given out in the order in which they were asked for: ``async with limiter: …``.

    It belongs to no event loop: threads with loops of their own may share it, one after the other or at once. A task
    that holds a place must not ask for another one of the same limiter, or all places may be held by those who wait.

    Args:
        max_concurrency: Number of places.
        max_queue: Most who may wait for a place; None for any number, 0 for nobody.

    Raises:
        BackendError: A number is out of its range.
    """

    def __init__(self, max_concurrency: int, *, max_queue: int | None = None) -> None:
        """Nobody holds a place yet."""
        if not _is_count(max_concurrency, 1):
            raise BackendError(f"max_concurrency is {max_concurrency!r}; allowed: a whole number of at least 1")
        if max_queue is not None and not _is_count(max_queue, 0):
            raise BackendError(f"max_queue is {max_queue!r}; allowed: a whole number of at least 0, or None")
        self.max_concurrency = max_concurrency
        self.max_queue = max_queue
        self._active = 0
        self._waiters: deque[_Waiter] = deque()
        # Reentrant, because the garbage collector may close an abandoned coroutine, which leaves its place, while this
        # thread is in here. What is done under the lock keeps to an order that such a guest cannot upset.
        self._lock = threading.RLock()

    @property
    def active(self) -> int:
        """Places that are taken."""
        return self._active

    @property
    def waiting(self) -> int:
        """Tasks that wait for a place."""
        return len(self._waiters)

    async def __aenter__(self) -> None:
        """Take a place, once there is one.

        Raises:
            QueueFullError: There is none, and as many wait already as may.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._active < self.max_concurrency and not self._waiters:
                self._active += 1
                return
            if self.max_queue is not None and len(self._waiters) >= self.max_queue:
                raise QueueFullError(
                    f"{self._active} calls are under way and {len(self._waiters)} wait already, as many as may "
                    f"(max_concurrency={self.max_concurrency}, max_queue={self.max_queue}); try again later"
                )
            waiter = _Waiter(loop)
            self._waiters.append(waiter)
            self._hand_out()
        try:
            await waiter.woken
        except BaseException:
            # Cancelled, maybe in the moment between being given the place and hearing of it.
            with self._lock:
                if waiter.placed:
                    self._leave()
                elif waiter in self._waiters:
                    self._waiters.remove(waiter)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the place to whoever has waited longest."""
        with self._lock:
            self._leave()

    def _leave(self) -> None:
        self._active -= 1
        self._hand_out()

    def _hand_out(self) -> None:
        """Give free places to those who wait; the lock is held."""
        while self._waiters and self._active < self.max_concurrency:
            waiter = self._waiters.popleft()
            self._active += 1
            waiter.placed = True
            try:
                waiter.loop.call_soon_threadsafe(waiter.wake)
            except RuntimeError:  # Its loop was closed with the task still in it: nobody is there to take the place.
                waiter.placed = False
                self._active -= 1


class _Waiter:
    """One task's wait; ``placed`` says whether a place is its own already, ``woken`` that it has heard of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.woken: asyncio.Future[None] = loop.create_future()
        self.placed = False

    def wake(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)


class Limited(BackendWrapper):
    """Lets only so many calls of a backend be under way at once; the others wait in line.

    Args:
        inner: The backend that does the work.
        limiter: The places, which other backends may share, or how many there are for this one alone.
    """

    def __init__(self, inner: Backend, limiter: Limiter | int) -> None:
        """Keep the limiter."""
        super().__init__(inner)
        self.limiter = limiter if isinstance(limiter, Limiter) else Limiter(limiter)

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


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
