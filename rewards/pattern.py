"""A regular expression as reward."""

from __future__ import annotations

import re

from backends import Completion, Prompt
from rewards.errors import RewardSpecError
from rewards.pointwise import PointwiseReward
from rewards.registry import register
from rewards.workers import Workers

SECONDS = 1.0
"""Most processor time of one search: with an unlucky text, some patterns would take for ever."""

_workers = Workers(
    "rewards.pattern:search",
    name="searching for a pattern",
    seconds=20 * SECONDS,
    cpu_seconds=SECONDS,
)


@register("regex")
class Regex(PointwiseReward):
    """Reward 1 for responses in which a regular expression is found, 0 for others.

    Whether it is an oracle depends on what the pattern knows. A search that takes too long gives no verdict.
    """

    minimum, maximum = 0.0, 1.0

    def __init__(self, pattern: str, ignore_case: bool = False, full: bool = False) -> None:
        """Set the pattern.

        Args:
            pattern: In Python's syntax; ``^`` and ``$`` match at every line, ``.`` matches line ends, too.
            ignore_case: Whether upper and lower case are the same.
            full: Whether it must match all of the response, but for white space around it.

        Raises:
            RewardSpecError: The pattern is none.
        """
        self._arguments = pattern, ignore_case, full
        try:
            search(*self._arguments, text="")
        except (re.error, RecursionError, OverflowError) as error:
            raise RewardSpecError(f"pattern {pattern!r:.200} is no regular expression: {error}") from error

    async def judge(self, prompt: Prompt, completion: Completion) -> float:
        """Return 1 if the pattern is found, 0 if not."""
        return float(await _workers.call(*self._arguments, text=completion.text) is not None)


def search(pattern: str, ignore_case: bool, full: bool, *, text: str) -> str | None:
    """Return what a pattern finds in a text, or None; see `Regex`."""
    compiled = re.compile(pattern, re.MULTILINE | re.DOTALL | (re.IGNORECASE if ignore_case else 0))
    match = compiled.fullmatch(text.strip()) if full else compiled.search(text)
    return None if match is None else match[0]
