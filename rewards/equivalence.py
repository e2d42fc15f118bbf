"""Which answers are the same: every answer has a key, and equal keys mean equal answers.

Plain numbers and words are compared right here. Everything else is read by math-verify in worker processes with hard
limits of time and memory.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.answers import canonical, without_layout
from rewards.errors import RewardError, RewardTimeoutError
from rewards.shared_workers import Allowance, shared_workers

LONGEST = 512
"""Characters; longer answers are compared as text."""
REMEMBERED = 4096
"""Answers whose keys are kept for the next time, by this process."""

_log = logging.getLogger(__name__)
_workers = shared_workers("rewards._math_key:math_key", name="reading an answer")
_known: dict[str, str] = {}
_lock = threading.Lock()

_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?|-?[0-9]+/[0-9]+")
_MIXED = re.compile(r"(-?)([0-9]{1,9}) ([0-9]{1,9})/([0-9]{1,9})")
_PARTS = re.compile(r"(.*[^\\\s])\s*\\?%")
_IN_WORDS = re.compile(r"\s*per ?cent$")
_CLOCK = re.compile(r"(?i)(?<![a-z\\])[ap]\.?m(?![a-z])")
_QUANTITIES = re.compile(r"[0-9}]\s*\\(?:text|mbox|mathrm)\s*\{(?!\s*(?:and|or)\s*\})[^{}]*\}\s*\\?[^\s^.]")
_THOUSANDS = re.compile(r"(?<![0-9,])[0-9]{1,3}(?:,[0-9]{3})+(?=\s*/)")
_PERCENT = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?\\?%")
_SHORT_FRACTION = re.compile(r"\\[dt]?frac\s*([0-9])\s*([0-9])(?![0-9])")
_LETTER = re.compile(r"\(?([A-Za-z])\)?")
_TEXT_GROUP = re.compile(r"\\(?:text|mbox|textbf|textit|textrm|mathrm|mathbf|begin|end)\s*\{[^{}]*\}")
_LATEX = str.maketrans(
    {"π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "×": r"\times ", "·": r"\cdot ", "°": r"^\circ "}
)
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")
_FUNCTIONS = "arccos arcsin arctan cos cosh cot csc exp gcd lcm ln log max min sec sin sinh tan tanh"
_MATHEMATICAL_WORDS = frozenset(f"{_FUNCTIONS} frac inf infty int mod or pi sqrt sum".split())
_BARE_COMMAND = re.compile(rf"(?<![A-Za-z\\])(?=(?:{_FUNCTIONS.replace(' ', '|')}|pi|infty)(?![A-Za-z]))")
# math-verify reads "2(3)" as the mixed number 2 + 3. But "\log_2(8)" and "\sin^2(x)" are no products.
_JUXTAPOSED = re.compile(r"((?<![_^0-9])[0-9]+|\))\s*(?=\()")
_REPEATING = re.compile(r"(-?)([0-9]*)\.([0-9]{0,50})\\overline\{([0-9]{1,50})\}")
# "5 cm", "15 inches^2", "\frac{1}{2} of an hour"; "3 million" is another number.
_NO_UNITS = (
    "million|billion|trillion|thousand|hundred|dozen|squared|cubed|hal(?:f|ves)|thirds?|quarters?|fourths?|fifths?|sixths?"
    "|sevenths?|eighths?|ninths?|tenths?|hundredths?|thousandths?|percent|factorial|points?"
)
_UNIT = re.compile(
    rf"(?<=[0-9}}])\s*(?!(?:{_NO_UNITS}|{'|'.join(_MATHEMATICAL_WORDS)})\b)"
    r"(?:(?:[A-Za-z]{2,}+[ .]*+)++|\\(?:text|mbox|mathrm)\s*\{[^{}]*\})(?:\^\{?[0-9]\}?)?$"
)
_TWO_NUMBERS = re.compile(r"[0-9] +[0-9]")
_IN_OTHER_BASE = re.compile(r"[0-9A-Za-z]+_\{?[0-9]+\}?")


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read in an answer.

    Attributes:
        key: Its key, see `equivalence_keys`; its text where it could not be read.
        failure: Why its value is not known although it may have one: reading failed, or the allowance is used up. None
            for what was read, and for what was tried and cannot be read within the limits.
    """

    key: str
    failure: RewardError | None = None


async def equivalence_keys(answers: Sequence[str], *, allowance: Allowance | None = None) -> list[str]:
    r"""Return a key for each answer: equal keys mean equal values, however they are written.

    ``1/2``, ``0.5``, ``\frac12`` and ``50\%`` have one key. Numbers are compared exactly, roots and the like to 12
    digits, expressions with variables by their values at three fixed points, sets without regard to order, equations up
    to a factor; ``x = 5`` is 5. Words are compared without regard to case. Units are left out, as graders of
    mathematics do, so ``5\text{ cm}`` is 5. What cannot be read within the limits is compared as text.

    Args:
        answers: Answers as they were written; an empty one has the key ``""``.
        allowance: What a run has left of the processes that read answers; when it is used up, the rest is compared as
            text. By default, that of a call outside of runs.
    """
    readings = await read_answers(answers, allowance=allowance)
    failures = [reading.failure for reading in readings if reading.failure is not None]
    if failures:
        _log.warning("%d of %d answers were compared as text: %s", len(failures), len(readings), failures[0])
    return [reading.key for reading in readings]


async def read_answers(answers: Sequence[str], *, allowance: Allowance | None = None) -> list[Reading]:
    """Return what is read in each answer, for those who tell a failure from an answer; see `equivalence_keys`."""
    own = Allowance() if allowance is None else allowance
    keys = {answer: _known.get(answer) for answer in answers}
    # In an order of their own: what is not read in the end must not depend on the order of a group.
    missing = sorted(answer for answer, key in keys.items() if key is None)
    found = dict(zip(missing, await asyncio.gather(*(_read(answer, own) for answer in missing)), strict=True))
    with _lock:  # There may be event loops in several threads.
        _known.update({answer: reading.key for answer, reading in found.items() if reading.failure is None})
        while len(_known) > REMEMBERED:
            del _known[next(iter(_known))]
    return [found[answer] if answer in found else Reading(keys[answer] or "") for answer in answers]


async def _read(answer: str, allowance: Allowance) -> Reading:
    if len(answer) <= LONGEST:
        answer = _bare(_IN_WORDS.sub("%", answer))
    text = canonical(answer)
    if (plain := _plain_key(answer, text)) is not None:
        return Reading(plain)
    key: object = None
    failure: RewardError | None = None
    try:
        key = await allowance.call(_workers, _latex(answer))
    except RewardTimeoutError as error:
        _log.debug("an answer is compared as text: %s", error)
    except RewardError as error:
        failure = error
    return Reading(key if isinstance(key, str) else text.casefold(), failure)


def _latex(answer: str) -> str:
    """Return an answer in the LaTeX that math-verify reads as it is meant."""
    if match := _PARTS.fullmatch(answer):
        answer = rf"\frac{{{match[1]}}}{{100}}"
    answer = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), answer)
    return _JUXTAPOSED.sub(r"\1\\cdot ", _BARE_COMMAND.sub(r"\\", answer.translate(_LATEX)))


def _bare(answer: str) -> str:
    """Return an answer without what does not count: layout, braces around all of it, a unit."""
    text = without_layout(answer).strip().rstrip(" .")
    while text[:1] == "{" and text[-1:] == "}":
        depths = list(itertools.accumulate((c == "{") - (c == "}") for c in text[:-1]))
        if min(depths) < 1:  # The first brace is closed before the end: "{1}{2}".
            break
        text = text[1:-1].strip()
    if _CLOCK.search(text):
        return text
    bare = _UNIT.sub("", text)
    # Not of "3 hours 5 minutes": what is left would be another quantity.
    return text if set(map(str.lower, _WORD.findall(_TEXT_GROUP.sub(",", bare)))) - _MATHEMATICAL_WORDS else bare


def _plain_key(answer: str, text: str) -> str | None:
    """Return the key of a number, of words, or of what is too long to be read; None for mathematics."""
    if not text or _NUMBER.fullmatch(text):
        return text
    if len(answer) > LONGEST:
        return text.casefold()
    if _CLOCK.search(answer) or _QUANTITIES.search(answer):
        return text.casefold()
    if match := _MIXED.fullmatch(text):
        sign, whole, top, bottom = match.groups()
        return canonical(f"{sign}{int(whole) * int(bottom) + int(top)}/{bottom}") if int(bottom) else text
    if match := _PERCENT.fullmatch(text):
        sign, whole, digits = match.groups("")
        return canonical(f"{sign}{whole}{digits}e-{2 + len(digits)}")
    if match := _SHORT_FRACTION.fullmatch(text):
        return canonical(rf"\frac{{{match[1]}}}{{{match[2]}}}")
    if match := _REPEATING.fullmatch(text):
        sign, whole, digits, period = match.groups()
        nines = 10 ** len(period) - 1
        return canonical(f"{sign}{int(f'0{whole}{digits}') * nines + int(period)}/{nines * 10 ** len(digits)}")
    if match := _LETTER.fullmatch(text):
        return match[1].lower()
    if match := _IN_OTHER_BASE.fullmatch(text):
        return re.sub(r"[{}]", "", text).casefold()
    rest = _TEXT_GROUP.sub(",", answer).strip(" .,")
    words = {word.lower() for word in _WORD.findall(rest)} - _MATHEMATICAL_WORDS
    side_by_side = _TWO_NUMBERS.search(rest) and "frac" not in rest
    return text.casefold() if not rest or words or ":" in rest or side_by_side else None
