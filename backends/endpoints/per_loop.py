"""One thing for each event loop, such as HTTP connections, which end with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class PerLoop(Generic[T]):
    """Makes a thing when an event loop first asks for it, and closes it when that loop ends.

    Args:
        make: Makes it.
        close: Closes it, in its own event loop.
    """

    def __init__(self, make: Callable[[], T], close: Callable[[T], Awaitable[Any]]) -> None:
        """Make nothing yet."""
        self._make = make
        self._close = close
        self._open: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[T, AsyncGenerator[Any]]] = WeakKeyDictionary()

    async def get(self) -> T:
        """Return the thing of the running event loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._open:
            made = self._make()
            lifetime = self._lifetime(made)
            self._open[loop] = made, lifetime
            await anext(lifetime)
        return self._open[loop][0]

    async def aclose(self) -> None:
        """Close all of them; those of other threads' loops a little later."""
        here = asyncio.get_running_loop()
        open_ = list(self._open.items())
        self._open.clear()  # At once, so that two who close at the same time do not close the same ones.
        for loop, (_, lifetime) in open_:
            if loop is here:
                await lifetime.aclose()
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(lifetime.aclose(), loop)

    async def _lifetime(self, made: T) -> AsyncGenerator[None]:
        """Last as long as an event loop: `asyncio.run` closes the asynchronous generators begun in it."""
        try:
            yield
        finally:
            await self._close(made)
