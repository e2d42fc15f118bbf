"""The API keys that a server accepts: from the environment, or from a file."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from ets_agent.errors import ConfigError

VARIABLE = "ETS_API_KEYS"
"""The environment variable with keys, separated by commas."""


class Keys:
    """A set of keys, compared in constant time.

    Args:
        keys: At least one key.
    """

    def __init__(self, keys: list[str]) -> None:
        """Keep them as bytes."""
        self._keys = [key.encode() for key in keys]

    def __contains__(self, token: str) -> bool:
        """Say whether a token is one of them; how long that takes tells nothing of which one, or how nearly."""
        return sum([hmac.compare_digest(key, token.encode()) for key in self._keys]) > 0


def read_keys(path: Path | None) -> Keys | None:
    """Return the keys of a file, one a line, or else those of the environment; None where there are none.

    Raises:
        ConfigError: The file cannot be read, or has no key.
    """
    if path is None:
        keys = [key.strip() for key in os.environ.get(VARIABLE, "").split(",") if key.strip()]
        return Keys(keys) if keys else None
    try:
        keys = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"cannot read the keys in {path}: {error}") from error
    if not keys:
        raise ConfigError(f"there is no key in {path}; one a line is expected")
    return Keys(keys)
