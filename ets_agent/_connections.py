"""How this package's HTTP servers run uvicorn: what a stranger may cost them before it has shown a key."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from ets_agent._listening import BACKLOG

HEAD_SECONDS = 10.0
"""Longest time that a client may take to send the head of a request, also of its second one."""
BODY_SECONDS = 30.0
"""Longest time that a client may take to send the body of a request."""
READ_SECONDS = 60.0
"""Longest time that a client may take to read the end of a response, all of which was written."""
_HANG_UP = "hang_up"


def connection_limit() -> int:
    """Return how many connections there may be: half of what files this process may open, the rest is for its work."""
    try:
        import resource
    except ImportError:  # Not everywhere is there such a limit.
        return 512
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 4096 if files == resource.RLIM_INFINITY else max(8, min(4096, files // 2))


async def hang_up(scope: Scope) -> None:
    """End the connection of a request at once, whatever of the response was not read; nobody else is told of it."""
    end: Callable[[], None] | None = scope.get("state", {}).get(_HANG_UP)
    if end is not None:
        end()
        await asyncio.sleep(0)  # Now uvicorn knows.


class Connection(H11Protocol):
    """A connection that is given up if no request comes over it; heads of requests have 16 KB at most.

    The other parser that uvicorn knows, httptools, takes heads of any size.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Nothing has come yet."""
        super().__init__(config, server_state, {**app_state, _HANG_UP: self._abort}, _loop)
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, if there is room for one more."""
        super().connection_made(transport)
        if len(self.connections) > connection_limit():
            self._abort()
        else:
            self._expect()

    def data_received(self, data: bytes) -> None:
        """Look whether this was the end of a head."""
        super().data_received(data)
        self._expect()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._forget()
        super().connection_lost(exc)

    def _expect(self) -> None:
        """Let time run while no request is being answered: for the head of one, or for reading the last response."""
        answering = self.cycle is not None and not self.cycle.response_complete
        # A connection that is closed waits for its client to read what was written.
        unread = self.transport.get_write_buffer_size() > 0
        if answering or (self.transport.is_closing() and not unread):
            self._forget()
        elif self._late is None:
            self._late = self.loop.call_later(READ_SECONDS if unread else HEAD_SECONDS, self._abort)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _abort(self) -> None:
        self.transport.abort()


def uvicorn_config(app: ASGIApp, *, closing_seconds: int) -> uvicorn.Config:
    """Return the settings of a server.

    Args:
        app: What answers; its start and end are the business of whoever runs the server.
        closing_seconds: How long connections may take to close in the end.
    """
    return uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        http=Connection,
        backlog=BACKLOG,
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=closing_seconds,
    )


class QuietServer(uvicorn.Server):
    """Leaves signals to whoever runs it.

    Args:
        config: What `uvicorn_config` returns.
        on_started: Called when connections are accepted.
    """

    def __init__(self, config: uvicorn.Config, *, on_started: Callable[[], None]) -> None:
        """Begin nothing yet."""
        super().__init__(config)
        self._on_started = on_started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets)
        if not self.should_exit:
            self._on_started()
