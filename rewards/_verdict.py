"""Reading a verdict out of what a language model has written."""

from __future__ import annotations

import json
import re
from typing import Any

from rewards._json import no_constant

_TOKEN = re.compile(r'\{\s*(["}]?)|\}')
_BACKSLASH = re.compile(r'\\(u[0-9a-fA-F]{4}|["\\/bfnrt])?')
_MOST_FAILURES = 100
"""Beginnings of objects that turn out to be none; each may cost a walk through the rest of the text."""


def last_object(text: str, key: str) -> dict[str, Any] | None:
    r"""Return the last JSON object in a text that has a key, None where it cannot be told which that is.

    Around it there may be prose, code fences and braces of other meaning. It must stand on its own: an object within
    another that is damaged or cut off may be a quotation, so there is none then, and neither is there if the text ends
    within an object or mentions the key after it. The key must occur once, on the outermost level. Line breaks in
    strings are allowed, and so are backslashes that escape nothing, as in ``\alpha``.
    """
    text = _BACKSLASH.sub(lambda match: match[0] if match[1] else r"\\", text)
    found: dict[str, Any] | None = None
    open_braces = failures = position = end = 0
    while (token := _TOKEN.search(text, position)) is not None:
        position = token.end()
        if token[0] == "}":
            open_braces = max(0, open_braces - 1)
        elif not open_braces and token[1]:
            try:
                value, position = _DECODER.raw_decode(text, token.start())
            except (ValueError, RecursionError):
                failures += 1
                open_braces = 1
                position = token.start() + 1
                if failures == _MOST_FAILURES:
                    return None
            else:
                if key in value:
                    found, end = value, position
        elif open_braces:
            open_braces += 1
            position = token.start() + 1
    return None if open_braces or f'"{key}"' in text[end:] else found


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key occurs twice")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repetition, parse_constant=no_constant, strict=False)
