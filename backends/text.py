"""Stop strings: where a text ends, and how much of an unfinished one can be shown for certain; halves of characters."""

from __future__ import annotations

import re

_HALVES = re.compile("[\ud800-\udfff]")
"""Halves of surrogate pairs: JSON can spell them, and no encoding has them."""


def has_halves(text: str) -> bool:
    """Whether a text has a half of a surrogate pair, which is no character and cannot be sent or saved."""
    return _HALVES.search(text) is not None


def without_halves(text: str) -> str:
    """Return a text with U+FFFD for each half of a surrogate pair."""
    return _HALVES.sub("\N{REPLACEMENT CHARACTER}", text)


def cut(text: str, stop: tuple[str, ...]) -> str:
    """Return the text before the first stop string, or all of it."""
    found = [position for position in (text.find(string) for string in stop) if position >= 0]
    return text[: min(found)] if found else text


def stop_end(text: str, begin: int, stop: tuple[str, ...]) -> int | None:
    """Return where the stop string ends that is complete first after ``begin`` characters; None where there is none.

    It may have begun before: whoever draws a text in parts sees each part alone.
    """
    ends = []
    for string in stop:
        place = text.find(string, max(0, begin - len(string) + 1))
        if place >= 0:
            ends.append(place + len(string))
    return min(ends, default=None)


def settled(text: str, stop: tuple[str, ...]) -> str:
    """Return an unfinished text without an end that may turn out to be the beginning of a stop string.

    So the text of a response only ever grows from state to state, whatever comes next.
    """
    longest = 0
    for string in stop:
        for length in range(min(len(string) - 1, len(text)), longest, -1):
            if text.endswith(string[:length]):
                longest = length
                break
    return text[: len(text) - longest]
