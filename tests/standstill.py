"""Tests of time, on a machine that may stand still: a try that failed while it did says nothing, and is made again."""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

TRIES = 5
TOO_LONG = 0.05
"""Seconds; a thread that is to run every few milliseconds has to wait for no longer where nothing stands still."""
_TICK = 0.005


class Watch:
    """Watches whether threads get to run.

    Attributes:
        longest: Most seconds, beyond those that it slept, in which the watching thread did not.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        over = False
        while not over:
            began = time.monotonic()
            over = self._over.wait(_TICK)
            self.longest = max(self.longest, time.monotonic() - began - _TICK)


def again_after_a_standstill(test: Callable[..., Any]) -> Callable[..., Any]:
    """Have a test of time tried again if it failed and threads did not get to run meanwhile; so many times at most.

    So what is always late still fails, also if it is late because it keeps all threads from running.
    """
    if inspect.iscoroutinefunction(test):

        @functools.wraps(test)
        async def try_it_async(*args: Any, **kwargs: Any) -> Any:
            for left in reversed(range(TRIES)):
                watch = Watch()
                try:
                    with watch:
                        return await test(*args, **kwargs)
                except Exception:
                    if not left or watch.longest < TOO_LONG:
                        raise
            raise AssertionError("unreachable")

        return try_it_async

    @functools.wraps(test)
    def try_it(*args: Any, **kwargs: Any) -> Any:
        for left in reversed(range(TRIES)):
            watch = Watch()
            try:
                with watch:
                    return test(*args, **kwargs)
            except Exception:
                if not left or watch.longest < TOO_LONG:
                    raise
        raise AssertionError("unreachable")

    return try_it
