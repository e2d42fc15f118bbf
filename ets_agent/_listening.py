"""Where this package's HTTP servers listen: an address that others reach only where callers need keys."""

from __future__ import annotations

import ipaddress
import os
import socket

from ets_agent._hosts import in_url
from ets_agent.errors import ConfigError

BACKLOG = 100
"""Connections that wait to be accepted; as many are accepted in one go."""


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
    if not keys and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
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
    return f"http://{in_url(host)}:{port}"
