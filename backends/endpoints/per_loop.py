"""One thing for each event loop, such as HTTP connections, which end with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from backends.errors import BackendClosedError

T = TypeVar("T")


class PerLoop(Generic[T]):
    """Makes a thing when an event loop first asks for it, and closes it when that loop ends.

    Args:
        name: What the things belong to, for messages.
        make: Makes one.
        close: Closes it, in its own event loop.
    """

    def __init__(self, name: str, make: Callable[[], T], close: Callable[[T], Awaitable[Any]]) -> None:
        """Make nothing yet."""
        self.name = name
        self._make = make
        self._close = close
        self._open: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[T, AsyncGenerator[Any]]] = WeakKeyDictionary()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether no more are made."""
        return self._closed

    def check_open(self) -> None:
        """Raise `BackendClosedError` where no more are made."""
        if self._closed:
            raise BackendClosedError(f"{self.name} is closed")

    async def get(self) -> T:
        """Return the thing of the running event loop.

        Raises:
            BackendClosedError: No more are made.
        """
        self.check_open()
        loop = asyncio.get_running_loop()
        if (known := self._open.get(loop)) is not None:
            return known[0]
        made = self._make()
        lifetime = self._lifetime(made)
        self._open[loop] = made, lifetime
        await anext(lifetime)
        return made

    def refuse(self) -> None:
        """Make no more from now on."""
        self._closed = True

    async def aclose(self) -> None:
        """Close all of them, those of other threads' loops a little later, and make no more."""
        self.refuse()
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
