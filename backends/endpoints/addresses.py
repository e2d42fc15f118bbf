"""Addresses of servers, and names that hold them, ``MODEL@URL`` or ``MODEL@URL,URL``; shown without credentials."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import unquote, urlsplit

from backends.errors import BackendError, UnknownModelError

_SCHEME = re.compile(r"@(?=[a-z][a-z0-9+.-]*:/|//|https?:)", re.IGNORECASE)
"""The @ before an address."""
_LOOKS_LIKE_ONE = re.compile(r"(?<=.)@[^@]*[/:]|@[^@/]*:", re.DOTALL)
"""An @ before what may be meant as an address; ``claude@20240620`` and ``@cf/meta/llama`` are names of models."""
_CREDENTIALS = re.compile(r"//(?:(?!,https?:).)*@", re.IGNORECASE | re.DOTALL)
"""Up to the last @ of an address: a password may hold anything, whether or not it should."""
_BARE_CREDENTIALS = re.compile(r"@[^@/]*:(?!//).*@", re.DOTALL)
"""The same where the address lacks its ``http://``."""
_QUERY = re.compile(r"\?[^\s,]*")
_BEGINNING = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_NUMBERS = re.compile(r"\d+(?:\.\d+){3}")
"""What is a host's address, and no name."""
_LONGEST = 65_536
"""Characters of an address that HTTP libraries take."""
_ESCAPES = "in a password, write / ? # @ , as %2F %3F %23 %40 %2C"


def shown(name: str) -> str:
    """Return a model's name that may hold addresses without users, passwords and queries."""
    return _QUERY.sub("", _BARE_CREDENTIALS.sub("@", _CREDENTIALS.sub("//", name)))


def shown_url(url: str) -> str:
    """Return an address, or what was meant as one, without user, password and query."""
    before, at, rest = url.rpartition("@")
    if not at:
        return rest.partition("?")[0]
    beginning = _BEGINNING.match(url)
    # After a question mark, the @ may be in a query, and so may be what follows.
    return (beginning[0] if beginning else "") + ("…" if "?" in before else rest.partition("?")[0])


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
            f"with commas between them; {_ESCAPES}"
        )
    return model, urls


def checked(url: object) -> str:
    """Return the address of a server as it was given.

    Raises:
        BackendError: It is none.
    """
    if not isinstance(url, str):
        raise BackendError(f"the address is {url!r}; allowed: a text such as 'http://HOST:PORT/v1'")
    if not valid(url):
        raise BackendError(
            f"the address {_cut(shown_url(url))!r} is no http:// or https:// URL, or has a query; {_ESCAPES}"
        )
    return url


def valid(url: str) -> bool:
    """Whether this is the address of a server; a query is none of it, and an @ in its path is part of a password."""
    if not url.isprintable() or len(url) > _LONGEST:
        return False
    try:
        parts = urlsplit(url)
        port_fits = parts.port is None or parts.port > 0
    except ValueError:
        return False
    extra = parts.query or parts.fragment or "@" in parts.path
    return parts.scheme in {"http", "https"} and _is_host(parts.hostname or "") and port_fits and not extra


def _is_host(host: str) -> bool:
    """Whether a text can be a host's name or number."""
    try:
        if _NUMBERS.fullmatch(host):
            ipaddress.IPv4Address(host)
        return bool(host.encode("idna"))
    except ValueError:
        return False


def _cut(url: str) -> str:
    return url if len(url) <= 200 else url[:200] + "…"


def credentials(url: str) -> str | None:
    """Return ``USER:PASSWORD`` of an address, decoded, where it has them; the password may be empty."""
    user, at, _ = urlsplit(url).netloc.rpartition("@")
    return unquote(user if ":" in user else f"{user}:") if at else None
