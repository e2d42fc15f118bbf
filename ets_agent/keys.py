"""API keys of servers: where they come from, and whether one that a caller shows is among them."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ets_agent.errors import ConfigError

ENVIRONMENT = "ETS_API_KEYS"
"""The environment variable that lists keys, separated by commas or white space."""

_COMMENT = re.compile(r"(?:^|\s)#")

Caller = bytes
"""Who asks: the digest of the key, so that no key lies about in memory or logs."""


class Keys:
    """The keys that let a caller in.

    Args:
        keys: The keys; without any, everybody is let in.

    Raises:
        ConfigError: A key is empty or has characters that no header can carry.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """Keep their digests alone."""
        digests = []
        for key in keys:
            if not re.fullmatch(r"[!-~]+", key):
                raise ConfigError("an API key is empty or has characters other than visible ASCII ones")
            digests.append(_digest(key.encode("ascii")))
        self._digests = tuple(dict.fromkeys(digests))

    @property
    def required(self) -> bool:
        """Whether callers need a key."""
        return bool(self._digests)

    def of_header(self, authorization: str) -> Caller | None:
        """Return whose key a header ``Authorization: Bearer KEY`` shows; None if it is nobody's.

        It takes the same time whichever key is shown and how much of one is right: digests of equal length are
        compared, in constant time, with all of them.
        """
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        shown = _digest(key.strip().encode("utf-8", "surrogatepass"))
        known = False
        for digest in self._digests:
            known |= hmac.compare_digest(digest, shown)
        return shown if known else None


def read_keys(file: str | Path | None, environment: Mapping[str, str]) -> Keys:
    """Return the keys in a file, one a line, and those in ``ETS_API_KEYS``.

    A ``#`` that begins a line of the file, or comes after white space, begins a comment; within a key it is part of it.

    Raises:
        ConfigError: The file cannot be read or has no key in it, or a key is not possible.
    """
    found = re.split(r"[,\s]+", environment.get(ENVIRONMENT, "").strip(", \t\r\n"))
    found = [key for key in found if key]
    if file is not None:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not valid UTF-8"
            raise ConfigError(f"cannot read API keys from {file}: {why}") from error
        in_file = [_COMMENT.split(line, maxsplit=1)[0].strip() for line in lines]
        in_file = [key for key in in_file if key]
        if not in_file:
            raise ConfigError(f"there is no API key in {file}; allowed: one a line")
        found += in_file
    return Keys(found)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
