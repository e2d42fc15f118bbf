"""Clocks for tests: an event loop whose clock jumps instead of running, so that waits are exact and take no time."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any


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


def now() -> float:
    return asyncio.get_running_loop().time()


def pass_time(seconds: float) -> None:
    """Let it be so much later in the running loop, whatever kind it is."""
    loop: Any = asyncio.get_running_loop()
    before = loop.time
    loop.time = lambda: before() + seconds
