"""Keys and passwords in texts of others: which settings are secret, and how they are cut out of messages and logs."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

LONGEST_MESSAGE = 500
"""Characters that are kept of what a server says."""
_SHORT = 8
"""Characters below which a secret is cut out only where it is a word of its own; others are full of such letters."""
_SHOWN_INSTEAD = "(key)"
_SECRET = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS)$", re.IGNORECASE)
"""Names of settings that are not to be shown."""
_HOLDERS = re.compile(r"^(?:extra_|default_)?headers$|CREDENTIALS", re.IGNORECASE)
"""Names of settings in which nothing is to be shown."""
_SCHEME = re.compile(r"^(?:Bearer|Basic|Token|Key) +", re.IGNORECASE)
"""What stands before the key in a header; some providers repeat the key alone."""
_PARTS = re.compile(r"\s+|\\+|.", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z0-9_.~-]")
"""Characters that are written alike everywhere."""
_SPACES = r"(?:\s|\+|%(?:20|0[9ad])|\\{1,8}[nrt])+"


def hidden(text: str, secrets: Iterable[str]) -> str:
    """Return a text without some secrets.

    They are found as they are, and as they come out of URLs, HTML, JSON, Python's ``repr``, and of whoever makes one
    space of several.
    """
    return _pattern(frozenset(secrets)).sub(_SHOWN_INSTEAD, text)


def cleaned(text: str, secrets: Iterable[str], *, longest: int = LONGEST_MESSAGE) -> str:
    """Return a text of somebody else's as it can be shown: without some secrets, on one line, cut to a length."""
    text = " ".join(hidden(text, secrets).split())
    return text if len(text) <= longest else text[:longest] + "…"


def secrets_of(settings: Mapping[str, object]) -> list[str]:
    """Return what is secret among settings, and among those within them, going by their names.

    Short ones are left out: they are placeholders, and words of ordinary messages.
    """
    found = [part for value in _secrets("", settings) for part in (value, _SCHEME.sub("", value))]
    return [value for value in found if len(value) >= _SHORT]


def _secrets(name: str, value: object, *, held: bool = False) -> Iterator[str]:
    """Yield the secrets of a setting; all that it holds are, where it is held by one of which nothing is shown."""
    held = held or _HOLDERS.search(name) is not None
    if isinstance(value, str):
        if held or _SECRET.search(name):
            yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _secrets(str(key), inner, held=held)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _secrets(name, inner, held=held)


def _pattern(secrets: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of some secrets, the longer ones first; without any, it finds nothing."""
    found = []
    for secret in sorted(filter(None, (secret.strip() for secret in secrets)), key=lambda each: (-len(each), each)):
        spelled = "".join(_spellings(part) for part in _PARTS.findall(secret))
        found.append(spelled if len(secret) >= _SHORT else rf"(?<!\w){spelled}(?!\w)")
    return re.compile("|".join(found) or r"(?!)")


def _spellings(part: str) -> str:
    """Return a pattern of how a character, or a run of spaces or of backslashes, may be written."""
    if part.isspace():
        return f"(?i:{_SPACES})"
    if part.startswith("\\"):
        return rf"(?i:\\|%5c|u005c){{{len(part)},}}"
    if _PLAIN.fullmatch(part):
        return part if part.isalnum() else re.escape(part)
    quoted = quote(part, safe="", errors="replace")
    codes = part.encode("utf-16-be", errors="surrogatepass").hex()
    escaped = r"\\{1,8}".join(f"u{codes[at : at + 4]}" for at in range(0, len(codes), 4))
    return rf"\\{{0,8}}(?:(?i:{quoted}|{escaped})|{re.escape(html.escape(part))}|{re.escape(part)})"
