"""Guided reasoning as an MCP server: one tool, over stdio or streamable HTTP, for any host that speaks the protocol.

The official SDK is imported only when one of these functions is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from backends import MissingExtraError
from ets_agent.guided import GuidedReasoning

if TYPE_CHECKING:
    from mcp.server import Server

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8001
PATH = "/mcp"
"""Where the HTTP server answers."""


def build_server(reasoning: GuidedReasoning) -> Server[Any]:
    """Return the SDK's server with the tool, for a transport or a program of one's own.

    Args:
        reasoning: What answers; it stays open.

    Raises:
        backends.MissingExtraError: The SDK is not installed.
    """
    check_installed()
    from ets_agent.mcp_server._server import build

    return build(reasoning)[0]


async def serve_stdio(reasoning: GuidedReasoning) -> None:
    """Serve one client over this process's stdin and stdout, until it closes them; whatever then runs is ended.

    Args:
        reasoning: What answers; it stays open.

    Raises:
        backends.MissingExtraError: The SDK is not installed.
    """
    check_installed()
    from mcp.server.stdio import stdio_server

    server = build_server(reasoning)
    try:
        async with stdio_server() as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())
    except* BrokenPipeError:
        pass  # The client is gone altogether, and with it whoever might be told.


async def serve_http(
    reasoning: GuidedReasoning,
    *,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    allowed_hosts: Sequence[str] = (),
    accepts: Callable[[str], bool] | None = None,
    on_start: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve any number of clients over streamable HTTP, until cancelled; whatever then runs is ended.

    Requests by another name of this machine than ``host`` and ``allowed_hosts`` are refused, so that no page in a
    browser reaches the server by a name of its own (DNS rebinding).

    Args:
        reasoning: What answers; it stays open.
        host: Address to listen at.
        port: Port to listen at; 0 for any that is free.
        allowed_hosts: Names, besides ``host``, by which clients reach this server.
        accepts: Says whether a bearer token is a key of this server; None asks for none.
        on_start: Called with the server's address once it takes requests.

    Raises:
        backends.MissingExtraError: The SDK is not installed.
        OSError: It cannot listen there.
    """
    check_installed()
    from ets_agent.mcp_server._http import serve

    await serve(reasoning, host=host, port=port, allowed_hosts=allowed_hosts, accepts=accepts, on_start=on_start)


def check_installed() -> None:
    """Raise `backends.MissingExtraError` where the SDK is missing, before anything else is done in vain."""
    try:
        import mcp  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("the MCP server needs mcp: pip install 'ets-agent[mcp]'") from error
