"""Model names that hold addresses, ``MODEL@URL`` or ``MODEL@URL,URL``, and how to show them without credentials."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from backends.errors import UnknownModelError

_CREDENTIALS = re.compile(r"//[^/\s]*@")
_QUERY = re.compile(r"\?[^\s,]*")


def shown(text: str) -> str:
    """Return an address, or a name with addresses, without users, passwords and queries."""
    return _QUERY.sub("", _CREDENTIALS.sub("//", text))


def split(name: str) -> tuple[str, list[str]]:
    """Return model and addresses of ``MODEL``, ``MODEL@URL`` or ``MODEL@URL,URL``.

    Raises:
        UnknownModelError: There is no model, or what follows the @ is no address.
    """
    model, at, rest = name.partition("@http")
    urls = [url.strip() for url in f"http{rest}".split(",")] if at else []
    if not model or model.endswith("@") or any(not valid(url) for url in urls):
        raise UnknownModelError(
            f"{shown(name)!r} is no model with an address; allowed: MODEL@http://HOST:PORT/v1, and several addresses "
            "with commas between them"
        )
    return model, urls


def valid(url: str) -> bool:
    """Whether this is the address of a server; a query is none of it."""
    try:
        parts = urlsplit(url)
        port_fits = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and port_fits and not parts.query


def credentials(url: str) -> str | None:
    """Return ``USER:PASSWORD`` of an address, decoded, where it has them."""
    user, at, _ = urlsplit(url).netloc.rpartition("@")
    return unquote(user) if at else None
