"""A regular expression as reward."""

from __future__ import annotations

import re
from re import _parser  # type: ignore[attr-defined]  # There is no public way to check a pattern and not compile it.

from backends import Completion, Prompt
from rewards.confined import ConfinedReward
from rewards.errors import RewardSpecError
from rewards.registry import register
from rewards.shared_workers import shared_workers

LONGEST = 2000
"""Characters of a pattern; to read so many takes a few milliseconds at most."""

_FLAGS = re.MULTILINE | re.DOTALL


@register("regex", pure=True)
class Regex(ConfinedReward):
    """Reward 1 for responses in which a regular expression is found, 0 for others.

    Whether it is an oracle depends on what the pattern knows. A search that takes too long gives no verdict.
    """

    minimum, maximum = 0.0, 1.0
    workers = shared_workers("rewards.regex:search", name="searching for a pattern")

    def __init__(self, pattern: str, ignore_case: bool = False, full: bool = False) -> None:
        """Set the pattern.

        Args:
            pattern: In Python's syntax, at most 2000 characters; ``^`` and ``$`` match at every line, ``.`` matches
                line ends, too.
            ignore_case: Whether upper and lower case are the same.
            full: Whether it must match all of the response, but for white space around it.

        Raises:
            RewardSpecError: The pattern is none, or too long. A few mistakes, such as a look-behind of no fixed width,
                show only when it is searched for.
        """
        self._arguments = pattern, ignore_case, full
        if len(pattern) > LONGEST:
            raise RewardSpecError(f"the pattern has {len(pattern)} characters; allowed: at most {LONGEST}")
        try:
            check_syntax(pattern)
        except (re.error, ValueError, RecursionError, OverflowError) as error:
            raise RewardSpecError(f"pattern {pattern!r:.200} is no regular expression: {error}") from error

    async def judge(self, prompt: Prompt, completion: Completion) -> float:
        """Return 1 if the pattern is found, 0 if not.

        Raises:
            RewardError: It took too long, or the pattern is none.
        """
        return float(await self.ask(*self._arguments, text=completion.text))


def check_syntax(pattern: str) -> None:
    """Read a pattern but never compile it or search for it: both may take for ever, and nothing can interrupt them.

    Raises:
        re.error: The pattern is none.
        ValueError: It has a number that is too long.
        RecursionError: It is nested too deeply.
        OverflowError: It has a number that is too large.
    """
    _parser.parse(pattern, _FLAGS)


def search(pattern: str, ignore_case: bool, full: bool, *, text: str) -> bool:
    """Return whether a pattern is found in a text; see `Regex`."""
    compiled = re.compile(pattern, _FLAGS | (re.IGNORECASE if ignore_case else 0))
    return bool(compiled.fullmatch(text.strip()) if full else compiled.search(text))
