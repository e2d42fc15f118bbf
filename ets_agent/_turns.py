"""Lets many runs take turns where they compute, so that the event loop hears of other things in between."""

from __future__ import annotations

import asyncio
from collections import deque
from weakref import WeakKeyDictionary

RUNS_PER_TURN = 4
"""Runs that go on between two looks at the network and the clock; each takes about a millisecond to its next wait."""


class _Turns:
    """The runs that wait on one event loop, which it does not keep alive."""

    def __init__(self) -> None:
        self._free = RUNS_PER_TURN
        self._line: deque[asyncio.Future[None]] = deque()
        self._armed = False

    async def take(self) -> None:
        """Wait until fewer have gone on in this turn than may."""
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_soon(self._next)
        if self._free > 0 and not self._line:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        await turn

    def _next(self) -> None:
        """Begin a new turn; called once in each round of the loop while anybody waits."""
        self._free = RUNS_PER_TURN
        while self._line and self._free > 0:
            turn = self._line.popleft()
            if not turn.done():  # It may have been cancelled.
                turn.set_result(None)
                self._free -= 1
        self._armed = bool(self._line)
        if self._armed:
            asyncio.get_running_loop().call_soon(self._next)


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = WeakKeyDictionary()


async def take_turn() -> None:
    """Wait for a turn on the running event loop; nothing is held, so there is nothing to give back."""
    loop = asyncio.get_running_loop()
    turns = _turns.get(loop)
    if turns is None:
        turns = _turns[loop] = _Turns()
    await turns.take()
