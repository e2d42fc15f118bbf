"""A response of server-sent events: what is said while there is nothing to say, and what if nobody reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from starlette.types import Send

from ets_agent.server.errors import ClientGoneError

SILENCE_SECONDS = 15.0
"""Seconds without an event after which a comment is sent: proxies end connections over which nothing comes."""
_COMMENT = b": at work\n\n"


class EventStream:
    """Sends events to a client.

    Args:
        send: Where to.
        headers: Headers of the response.
        stall_seconds: Longest time that the client may take to read what was sent.
    """

    def __init__(self, send: Send, headers: Sequence[tuple[bytes, bytes]], *, stall_seconds: float) -> None:
        """Send nothing yet."""
        self._send = send
        self._headers = headers
        self._stall_seconds = stall_seconds
        self._said = 0.0
        self._begun = asyncio.Event()

    @property
    def begun(self) -> bool:
        """Whether the client was told a status, which cannot be taken back."""
        return self._begun.is_set()

    async def begin(self) -> None:
        """Tell the status."""
        headers = [
            *self._headers,
            (b"content-type", b"text/event-stream; charset=utf-8"),
            # Proxies must not keep blocks back.
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self._said = asyncio.get_running_loop().time()
        self._begun.set()

    async def event(self, data: str, *, last: bool = False) -> None:
        """Send an event; it takes as long as the client does to read, but not for ever.

        Args:
            data: What it says, in one line.
            last: Whether it ends the response.

        Raises:
            ClientGoneError: The client does not read.
        """
        await self._say(f"data: {data}\n\n".encode(), more=not last)

    @asynccontextmanager
    async def kept_alive(self) -> AsyncGenerator[None]:
        """Send a comment whenever there was no event for long, once it has begun."""
        beating = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _beat(self) -> None:
        await self._begun.wait()
        loop = asyncio.get_running_loop()
        while True:
            left = self._said + SILENCE_SECONDS - loop.time()
            if left > 0:
                await asyncio.sleep(left)
            else:
                await self._say(_COMMENT)

    async def _say(self, data: bytes, *, more: bool = True) -> None:
        try:
            async with asyncio.timeout(self._stall_seconds):
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError:
            raise ClientGoneError from None
        self._said = asyncio.get_running_loop().time()
