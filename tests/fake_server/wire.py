"""Answers on the wire, whole or broken off, and how to notice that a client has gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping, Sequence
from typing import Any, TypeVar

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
T = TypeVar("T")

_FLUSH_SECONDS = 1.0


class ClientGoneError(Exception):
    """The client went away; nobody wants the answer."""


async def read(receive: Receive) -> bytes | None:
    """Return the whole body, None if the client went away before it was there."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def gone(receive: Receive) -> None:
    """Wait until the connection is closed; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def until_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """Await some work, and stop it when the client goes away.

    Raises:
        ClientGoneError: It did.
    """
    doing = asyncio.create_task(work)
    watching = asyncio.create_task(gone(receive))
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientGoneError
        return doing.result()
    finally:
        doing.cancel()
        watching.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


def encode(answer: Any) -> bytes:
    """Return the body for some JSON; None is an empty one."""
    if answer is None:
        return b""
    text = json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")  # Half of a surrogate pair becomes JSON's escape for it.


async def send_whole(
    send: Send, status: int, parts: Sequence[bytes], headers: Headers, *, stream: bool = False
) -> None:
    """Send an answer: one part, or those of a stream."""
    await send({"type": "http.response.start", "status": status, "headers": _headers(parts, headers, stream)})
    for part in parts[:-1]:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": parts[-1]})


async def send_part(
    send: Send,
    receive: Receive,
    status: int,
    parts: Sequence[bytes],
    headers: Headers,
    *,
    sent: float,
    reset: bool,
    stream: bool = False,
) -> None:
    """Announce a whole answer, send a share of its bytes, and end the connection.

    Args:
        sent: Share of the body.
        reset: Whether the client gets a reset (RST) or an orderly end (FIN).
    """
    # ASGI has no word for this; uvicorn's `send` is a method of the object that holds the connection.
    transport: asyncio.Transport = send.__self__.transport  # type: ignore[attr-defined]
    body = b"".join(parts)
    await send({"type": "http.response.start", "status": status, "headers": _headers(parts, headers, stream)})
    await send({"type": "http.response.body", "body": body[: int(len(body) * sent)], "more_body": True})
    # The event loop writes at the end of its turn, and what it still holds would be lost.
    await asyncio.sleep(0)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FLUSH_SECONDS):
            while transport.get_write_buffer_size() > 0 and not transport.is_closing():
                await asyncio.sleep(0.001)
    if reset and not transport.is_closing():
        # Without lingering, closing a socket resets its connection.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()
    await gone(receive)


def _headers(parts: Sequence[bytes], headers: Headers, stream: bool) -> Headers:
    """Return the headers; without a length, uvicorn marks where each part of a stream ends."""
    if stream:
        return [(b"content-type", b"text/event-stream; charset=utf-8"), *headers]
    size = str(sum(map(len, parts))).encode()
    return [(b"content-type", b"application/json"), (b"content-length", size), *headers]
