"""The MCP server over streamable HTTP: where it listens, who is let in, and how it ends."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import uvicorn
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.transport_security import TransportSecuritySettings
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ets_agent._connections import uvicorn_config
from ets_agent._hosts import in_url, own_names
from ets_agent.guided import GuidedReasoning
from ets_agent.mcp_server import PATH
from ets_agent.mcp_server._server import build

_LAST_WORDS = 0.1
"""Seconds for the answers of calls that were ended by the shutdown to reach those who wait for them."""
_GRACEFUL = 1
"""Seconds that connections have to close once nothing is sent over them any more."""


async def serve(
    reasoning: GuidedReasoning,
    *,
    host: str,
    port: int,
    allowed_hosts: Sequence[str],
    accepts: Callable[[str], bool] | None,
    on_start: Callable[[str], None],
) -> None:
    """Serve until cancelled; see `ets_agent.mcp_server.serve_http`."""
    server, calls = build(reasoning)
    app: ASGIApp = server.streamable_http_app(
        streamable_http_path=PATH, transport_security=_security(host, allowed_hosts)
    )
    if accepts is not None:
        app = _Bearer(app, accepts)
    # The sessions are entered here, not by uvicorn, which would wait for their endless streams before it ended them.
    config = uvicorn_config(app, closing_seconds=_GRACEFUL)
    with _listening(host, port) as listener:
        bound = listener.getsockname()[1]
        http = _Server(config, lambda: on_start(f"http://{in_url(host)}:{bound}{PATH}"))
        serving = asyncio.create_task(http.serve(sockets=[listener]))
        try:
            async with server.session_manager.run():
                try:
                    await asyncio.wait([serving])
                finally:
                    await calls.close()
                    await asyncio.sleep(_LAST_WORDS)
        finally:
            http.should_exit = True
            await asyncio.wait([serving])
        serving.result()


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to the command that runs it, and says when it takes requests."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._on_start()


class _Bearer:
    """Lets only those requests in that carry a key; a session belongs to the key that began it."""

    def __init__(self, app: ASGIApp, accepts: Callable[[str], bool]) -> None:
        self._app = app
        self._accepts = accepts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not self._accepts(token.strip()):
                refused = JSONResponse(
                    {"error": "invalid_token", "error_description": "an API key is needed: Authorization: Bearer KEY"},
                    status_code=401,
                    headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
                )
                await refused(scope, receive, send)
                return
            owner = hashlib.sha256(token.strip().encode()).hexdigest()
            scope = {**scope, "user": AuthenticatedUser(AccessToken(token="", client_id=owner, scopes=[]))}
        await self._app(scope, receive, send)


def _security(host: str, allowed: Sequence[str]) -> TransportSecuritySettings:
    """Let requests in that name this machine as its clients do."""
    names = [in_url(name) for name in own_names(host, allowed)]
    return TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=[entry for name in names for entry in (name, f"{name}:*")],
        allowed_origins=[
            f"{scheme}://{entry}" for name in names for entry in (name, f"{name}:*") for scheme in ("http", "https")
        ],
    )


def _listening(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener
