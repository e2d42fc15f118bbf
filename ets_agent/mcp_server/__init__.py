"""Guided reasoning as an MCP server: one tool, over stdio or streamable HTTP, for any host that speaks the protocol.

The official SDK is imported only when one of these functions is called.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from backends import MissingExtraError
from ets_agent._listening import bind
from ets_agent.guided import GuidedReasoning
from ets_agent.keys import Keys
from ets_agent.mcp_server._source import Loading

if TYPE_CHECKING:
    from mcp.server import Server

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8001
PATH = "/mcp"
"""Where the HTTP server answers."""

__all__ = [
    "DEFAULT_HOST",
    "DEFAULT_PORT",
    "PATH",
    "Loading",
    "bind",
    "build_server",
    "check_installed",
    "serve_http",
    "serve_stdio",
]


def build_server(reasoning: GuidedReasoning) -> Server[Any]:
    """Return the SDK's server with the tool, for a transport or a program of one's own.

    Args:
        reasoning: What answers; it stays open.

    Raises:
        backends.MissingExtraError: The SDK is not installed.
    """
    check_installed()
    from ets_agent.mcp_server._server import build
    from ets_agent.mcp_server._source import Ready

    return build(Ready(reasoning))[0]


async def serve_stdio(reasoning: GuidedReasoning | Loading) -> None:
    """Serve one client over this process's stdin and stdout, until it closes them; whatever then runs is ended.

    Args:
        reasoning: What answers; it stays open. What is still to be loaded is loaded while the client is told already
            what there is, and closed in the end; calls wait for it, for as long as their time limits let them.

    Raises:
        backends.MissingExtraError: The SDK is not installed.
        Exception: What loading has raised.
    """
    check_installed()
    from ets_agent.mcp_server._stdio import serve

    try:
        await serve(reasoning)
    except* BrokenPipeError:
        pass  # The client is gone altogether, and with it whoever might be told.


async def serve_http(
    reasoning: GuidedReasoning,
    listener: socket.socket,
    *,
    keys: Keys | None = None,
    hosts: Sequence[str] = (),
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve any number of clients over streamable HTTP, until cancelled; whatever then runs is ended.

    Without keys, requests by other names of this machine are refused, so that no page in a browser reaches the server
    by a name of its own (DNS rebinding).

    Args:
        reasoning: What answers; it stays open.
        listener: What `bind` has made; it is closed.
        keys: The keys that let a client in; without any, everybody is let in.
        hosts: Names of this machine, besides those of loopback, that clients without keys may use in addresses.
        on_ready: Called with the server's address when connections are accepted.

    Raises:
        backends.MissingExtraError: The SDK is not installed.
    """
    check_installed()
    from ets_agent.mcp_server._http import serve

    await serve(reasoning, listener, keys=keys or Keys(), hosts=hosts, on_ready=on_ready)


def check_installed() -> None:
    """Raise `backends.MissingExtraError` where the SDK is missing, before anything else is done in vain."""
    try:
        import mcp  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("the MCP server needs mcp: pip install 'ets-agent[mcp]'") from error
