"""Runs the application with uvicorn until it is cancelled, and then ends in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from ets_agent._connections import BACKLOG, uvicorn_config
from ets_agent._hosts import is_loopback
from ets_agent.errors import ConfigError

CLOSING_SECONDS = 2.0
"""How long connections are given to close after all work has ended."""


def bind(host: str, port: int, *, keys: bool) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: Name or address of the interface.
        port: The port; 0 takes a free one.
        keys: Whether callers need a key; without, nobody but this machine itself may call.

    Raises:
        ConfigError: The address cannot be used, or is open to others without keys.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, OverflowError) as error:
        raise ConfigError(f"there is no address {host!r}: {error}") from error
    family, _, _, _, address = found[0]
    if not keys and not is_loopback(str(address[0]).partition("%")[0]):
        raise ConfigError(
            f"{host} can be reached from other machines, so callers need keys: give --api-key-file or ETS_API_KEYS, "
            "or serve on 127.0.0.1"
        )
    try:
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        # Python's own message names the address once more.
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise ConfigError(f"cannot listen on {host} port {port}: {why}") from error


def url_of(listener: socket.socket) -> str:
    """Return the address of a socket that listens, as clients write it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(
    app: FastAPI,
    listener: socket.socket,
    *,
    shutdown_timeout: float = 30.0,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until this is cancelled.

    Then nothing new is begun; what is under way may finish within ``shutdown_timeout``, and what has not is ended and
    its clients are told so. All is over at most `CLOSING_SECONDS` after that: a model that does not let go of its work
    is not waited for here, but by whoever closes it.

    Args:
        app: What `create_app` has made.
        listener: What `bind` has made; it is closed.
        shutdown_timeout: Seconds that answers in the making are given.
        on_ready: Called with the address when connections are accepted.
    """
    config = uvicorn_config(app, closing_seconds=1)
    server = _Server(config, app, shutdown_timeout=shutdown_timeout, on_started=lambda: on_ready(url_of(listener)))
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await asyncio.shield(running)
    finally:
        server.should_exit = True
        await running


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs it, and lets work end before connections."""

    def __init__(
        self, config: uvicorn.Config, app: FastAPI, *, shutdown_timeout: float, on_started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._work = app.state.work
        self._shutdown_timeout = shutdown_timeout
        self._on_started = on_started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await self._work.close(self._shutdown_timeout)
        await super().shutdown(sockets)
