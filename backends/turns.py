"""Lets those who compute in an event loop take turns, so that it hears of other things in between."""

from __future__ import annotations

import asyncio
from collections import deque
from weakref import WeakKeyDictionary

GOING_ON_PER_TURN = 4
"""Runs and requests that go on between two looks at the network and the clock, a millisecond or so each."""


class _Turns:
    """Those who wait on one event loop, which this does not keep alive."""

    def __init__(self) -> None:
        self._free = GOING_ON_PER_TURN
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
        self._free = GOING_ON_PER_TURN
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
