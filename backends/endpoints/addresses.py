"""Model names that hold addresses, ``MODEL@URL`` or ``MODEL@URL,URL``, and how to show them without credentials."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from backends.errors import UnknownModelError

_SCHEME = re.compile(r"@(?=[a-z][a-z0-9+.-]*:/|//|https?:)", re.IGNORECASE)
"""The @ before an address."""
_LOOKS_LIKE_ONE = re.compile(r"(?<=.)@[^@]*[/:]|@[^@/]*:", re.DOTALL)
"""An @ before what may be meant as an address; ``claude@20240620`` and ``@cf/meta/llama`` are names of models."""
_CREDENTIALS = re.compile(r"//(?:(?!,https?:).)*@", re.IGNORECASE | re.DOTALL)
"""Up to the last @ of an address: a password may hold anything, whether or not it should."""
_BARE_CREDENTIALS = re.compile(r"@[^@/]*:(?!//).*@", re.DOTALL)
"""The same where the address lacks its ``http://``."""
_QUERY = re.compile(r"\?[^\s,]*")


def shown(text: str) -> str:
    """Return an address, or a name with addresses, without users, passwords and queries."""
    return _QUERY.sub("", _BARE_CREDENTIALS.sub("@", _CREDENTIALS.sub("//", text)))


def split(name: str) -> tuple[str, list[str]]:
    """Return model and addresses of ``MODEL``, ``MODEL@URL`` or ``MODEL@URL,URL``.

    Raises:
        UnknownModelError: There is no model, or what follows the @ is no address.
    """
    found = _SCHEME.search(name)
    model = name[: found.start()] if found else name
    urls = [url.strip() for url in name[found.end() :].split(",")] if found else []
    if not model or model.endswith("@") or _LOOKS_LIKE_ONE.search(model) or any(not valid(url) for url in urls):
        raise UnknownModelError(
            f"{shown(name)!r} is no model with an address; allowed: MODEL@http://HOST:PORT/v1, and several addresses "
            "with commas between them; in a password, write / ? # @ , as %2F %3F %23 %40 %2C"
        )
    return model, urls


def valid(url: str) -> bool:
    """Whether this is the address of a server; a query is none of it, and an @ in its path is part of a password."""
    try:
        parts = urlsplit(url)
        port_fits = parts.port is None or parts.port > 0
    except ValueError:
        return False
    extra = parts.query or parts.fragment or "@" in parts.path
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and port_fits and not extra


def credentials(url: str) -> str | None:
    """Return ``USER:PASSWORD`` of an address, decoded, where it has them; the password may be empty."""
    user, at, _ = urlsplit(url).netloc.rpartition("@")
    return unquote(user if ":" in user else f"{user}:") if at else None
