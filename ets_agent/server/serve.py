"""Runs the application with uvicorn until it is cancelled, and then ends in bounded time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from ets_agent._connections import QuietServer, uvicorn_config
from ets_agent._listening import url_of
from ets_agent._serving import SHUTDOWN_SECONDS

CLOSING_SECONDS = 2.0
"""How long connections are given to close after all work has ended."""


async def serve(
    app: FastAPI,
    listener: socket.socket,
    *,
    shutdown_timeout: float = SHUTDOWN_SECONDS,
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


class _Server(QuietServer):
    """Lets work end before connections."""

    def __init__(
        self, config: uvicorn.Config, app: FastAPI, *, shutdown_timeout: float, on_started: Callable[[], None]
    ) -> None:
        super().__init__(config, on_started=on_started)
        self._work = app.state.work
        self._shutdown_timeout = shutdown_timeout

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await self._work.close(self._shutdown_timeout)
        await super().shutdown(sockets)
