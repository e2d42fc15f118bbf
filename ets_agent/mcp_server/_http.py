"""The MCP server over streamable HTTP: who is let in, how long a request may take to come, and how it ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http_manager import DEFAULT_MAX_REQUEST_BODY_SIZE
from mcp.server.transport_security import TransportSecuritySettings
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backends.concurrency import UnderWay
from ets_agent import _connections
from ets_agent._connections import QuietServer, uvicorn_config
from ets_agent._hosts import in_url, own_names
from ets_agent._listening import url_of
from ets_agent.guided import GuidedReasoning
from ets_agent.keys import Keys
from ets_agent.mcp_server import PATH
from ets_agent.mcp_server._server import build
from ets_agent.mcp_server._source import Ready

_LAST_WORDS = 0.1
"""Seconds for the answers of calls that were ended by the shutdown to reach those who wait for them."""
_GRACEFUL = 1
"""Seconds that connections have to close once nothing is sent over them any more."""


async def serve(
    reasoning: GuidedReasoning,
    listener: socket.socket,
    *,
    keys: Keys,
    hosts: Sequence[str],
    on_ready: Callable[[str], None],
) -> None:
    """Serve until cancelled; see `ets_agent.mcp_server.serve_http`."""
    server, calls = build(Ready(reasoning))
    bodies = _Bodies(
        server.streamable_http_app(streamable_http_path=PATH, transport_security=_security(keys, hosts)),
    )
    app = _Bearer(bodies, keys) if keys.required else bodies
    # The sessions are entered here, not by uvicorn, which would wait for their endless streams before it ended them.
    config = uvicorn_config(app, closing_seconds=_GRACEFUL)
    with listener:
        http = QuietServer(config, on_started=lambda: on_ready(url_of(listener) + PATH))
        serving = asyncio.create_task(http.serve(sockets=[listener]))
        try:
            async with server.session_manager.run():
                try:
                    await asyncio.wait([serving])
                finally:
                    bodies.close()
                    await calls.close()
                    await asyncio.sleep(_LAST_WORDS)
        finally:
            http.should_exit = True
            await asyncio.wait([serving])
        serving.result()


class _Bodies:
    """Hands over requests whose bodies have arrived, in time: the SDK takes a hang-up within one for its own crash.

    Args:
        app: What answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._reading = UnderWay()
        self._closed = False

    def close(self) -> None:
        """Wait for no body any more; whose has not arrived is told."""
        self._closed = True
        self._reading.end()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(receive)
        except TimeoutError:
            status, why = (503, "the server is shutting down") if self._closed else (408, "the body did not arrive")
            await JSONResponse({"error": why}, status, headers={"Connection": "close"})(scope, receive, send)
            return
        if body is None:  # The client has hung up.
            return

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            message, body = body, None
            return message

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> Message | None:
        """Return the body as one message, or the beginning of one that the SDK will find too large."""
        parts, size, more = [], 0, True
        async with asyncio.timeout(0 if self._closed else _connections.BODY_SECONDS) as limit:
            with self._reading.noted(limit):
                while more and size <= DEFAULT_MAX_REQUEST_BODY_SIZE:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size, more = size + len(parts[-1]), message.get("more_body", False)
        return {"type": "http.request", "body": b"".join(parts), "more_body": more}


class _Bearer:
    """Lets only those requests in that carry a key; a session belongs to the key that began it."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            caller = self._keys.of_header(Headers(scope=scope).get("authorization", ""))
            if caller is None:
                refused = JSONResponse(
                    {"error": "invalid_token", "error_description": "an API key is needed: Authorization: Bearer KEY"},
                    status_code=401,
                    headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
                )
                await refused(scope, receive, send)
                return
            scope = {**scope, "user": AuthenticatedUser(AccessToken(token="", client_id=caller.hex(), scopes=[]))}
        await self._app(scope, receive, send)


def _security(keys: Keys, hosts: Sequence[str]) -> TransportSecuritySettings:
    """Let requests in that name this machine as its clients do; no page knows a key, so with keys any name will do."""
    names = [in_url(name) for name in own_names(hosts)]
    return TransportSecuritySettings(
        enable_dns_rebinding_protection=not keys.required,
        allowed_hosts=[entry for name in names for entry in (name, f"{name}:*")],
        allowed_origins=[
            f"{scheme}://{entry}" for name in names for entry in (name, f"{name}:*") for scheme in ("http", "https")
        ],
    )
