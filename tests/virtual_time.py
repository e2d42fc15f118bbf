"""Clocks for tests: an event loop whose clock jumps instead of running, so that waits are exact and take no time."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

from backends.scripted import ScriptedBackend


class _Instant(selectors.DefaultSelector):
    """Where nothing is to be read, time is simply later."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        found: list[Any] = super().select(0)
        if not found:
            assert timeout is not None, "everything waits for ever"
            self.now += timeout
        return found


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next thing that is due, so that waits are exact and take no time."""

    def __init__(self) -> None:
        self._instant = _Instant()
        super().__init__(self._instant)

    def time(self) -> float:
        return self._instant.now


def timeless(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in a loop of that kind, where time begins at 0."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=_Loop) as runner:
            runner.run(test(*args, **kwargs))

    return run


class Overdue(ScriptedBackend):
    """A scripted model whose calls take no time, until one is never done: with it, so many seconds are over at once.

    So a run ends by its time limit at a known place, however fast or slow the machine is.

    Args:
        script: As for a scripted model.
        at: The call that is not done, by `extend` or `rollout`; 1 is the first.
        seconds: What is over then; more than the run's time limit.
    """

    def __init__(self, script: Any, *, at: int = 1, seconds: float) -> None:
        super().__init__(script)
        self._at, self._seconds = at, seconds

    async def _work(self) -> None:
        await super()._work()
        if self.calls >= self._at:
            self.active += 1
            if self.calls == self._at:
                pass_time(self._seconds)
            try:
                await asyncio.Event().wait()
            finally:
                self.active -= 1


def now() -> float:
    return asyncio.get_running_loop().time()


def pass_time(seconds: float) -> None:
    """Let it be so much later in the running loop, whatever kind it is."""
    loop: Any = asyncio.get_running_loop()
    before = loop.time
    loop.time = lambda: before() + seconds
