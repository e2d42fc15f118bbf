"""By which names clients may call a server that asks for no keys, so that no page in a browser can use it.

A page may send requests to any address, and a name of its own may be made to lead to this machine (DNS rebinding).
What gives it away is the name in the request: ``Host`` is the one that it used, and ``Origin`` is the page's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")


def own_names(names: Iterable[str]) -> list[str]:
    """Return the names by which clients may call a server: those given, and those of loopback.

    Those of loopback are always its own: where no keys are asked for, it listens nowhere else.
    """
    return list(dict.fromkeys([*names, *LOOPBACK_NAMES]))


def in_url(host: str) -> str:
    """Return a name or an address as addresses of pages have it."""
    return f"[{host}]" if ":" in host else host


class Names:
    """The names of a server.

    Args:
        names: Names and addresses, without ports.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """Keep them."""
        self._names = {name.lower() for name in names}

    def __str__(self) -> str:
        """List them."""
        return ", ".join(sorted(self._names))

    def has_host(self, host: str) -> bool:
        """Say whether a ``Host`` is one of them, with any port."""
        return self._has(f"http://{host}")

    def has_origin(self, origin: str) -> bool:
        """Say whether an ``Origin`` is a page of one of them."""
        return origin.startswith(("http://", "https://")) and self._has(origin)

    def _has(self, url: str) -> bool:
        try:
            return urlsplit(url).hostname in self._names
        except ValueError:
            return False
