"""Models that wait, fail, or talk a lot."""

from __future__ import annotations

import asyncio

from backends import BackendError, EndpointError, State
from backends.scripted import ScriptedBackend
from tests.server.served import SCRIPT


class Gated(ScriptedBackend):
    """Draws nothing before the gate is opened, but for what is free, and counts who waits there."""

    def __init__(self, *, free: int = 0) -> None:
        super().__init__(SCRIPT)
        self.waiting = 0
        self._free = free
        self._gate = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """Open the gate, from another thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._gate.set)

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        self._loop = asyncio.get_running_loop()
        self._free -= 1
        if self._free >= 0:
            return await super().extend(state, n, tokens=tokens, seed=seed)
        self.waiting += 1
        try:
            await self._gate.wait()
        finally:
            self.waiting -= 1
        return await super().extend(state, n, tokens=tokens, seed=seed)


class Failing(ScriptedBackend):
    """Fails from some extension on; 1 is the first."""

    def __init__(self, error: Exception, *, at: int = 1) -> None:
        super().__init__(SCRIPT)
        self._error = error
        self._left = at

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        self._left -= 1
        if self._left <= 0:
            raise self._error
        return await super().extend(state, n, tokens=tokens, seed=seed)


UNREACHABLE = EndpointError("POST http://10.1.2.3/v1: connection refused, key sk-123", retryable=True)
BROKEN = BackendError("device cuda:3 is lost")
BUG = KeyError("a bug in line 7")
