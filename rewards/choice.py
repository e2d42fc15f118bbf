"""Multiple choice: which option a response picks, and the oracle that knows the right one."""

from __future__ import annotations

import re
import string

from backends import Completion, Prompt
from rewards.answers import stated_answer
from rewards.errors import RewardSpecError
from rewards.pointwise import PointwiseReward
from rewards.registry import register

_LETTERS = string.ascii_uppercase
_LONGEST_ALONE = 40
"""Characters of a response that is nothing but a letter, with whatever markup."""
_ONLY = re.compile(r"[\s$*_(\[{.:`]*(?:\\(?:text|mathrm|textbf|mathbf)\s*\{)?[\s(\[*]*([A-Za-z])[\s)\]*}.:`$_]*")
# "The answer is (C)", "Answer: C", "correct option is **C**"; the letter in upper case, or in brackets. Nothing is
# tried twice ("*+"), so that long runs of spaces take linear time.
_NAMED = re.compile(
    r"\b(answer|option|choice)\b[ \t]*+(?:(?:is|would be|must be|should be)\b)?+[ \t]*+[:=]?+\s{0,3}+"
    r"(?:(?:option|choice|letter)\b)?+[ \t]*+[*_$`]{0,4}+(?:\\(?:text|mathrm|textbf|mathbf|boxed)\{)?+"
    r"(?:[(\[]([A-Za-z])[)\]]|([A-Za-z])(?![\w'’-]))",
    re.IGNORECASE,
)
_BRACKETED = re.compile(r"(?<!\w)[(\[]([A-Z])[)\]](?!\w)|(?:^|\n)[ \t]*\**([A-Z])[).:]|\*\*\(?([A-Z])\)?[.:]?\*\*")
_ALONE = re.compile(r"(?<![\w'’-])([A-Z])(?![\w'’-])")


_NOT_AFTER_ARTICLES = frozenset(
    {"and", "as", "because", "but", "by", "for", "from", "if", "in", "is", "it", "not", "of", "on", "or", "rather"}
    | {"since", "so", "than", "that", "the", "these", "this", "to", "which", "while", "with"}
)


def extract_choice(text: str, options: int = 26) -> str | None:
    r"""Return the letter of the option that a response picks, in upper case, or None if it picks none.

    In order of preference: an answer marked by ``####`` or ``\boxed{…}``; the last "the answer is C" or the like, then
    the last "option (C)"; a response that is nothing but a letter; the last letter in brackets, in bold, or at the
    start of a line as in "C."; the last capital letter that stands alone. The article "a" is no option, nor "A" and "I"
    as words of a sentence.

    Args:
        text: A response of any length.
        options: How many options there are: the first letters of the alphabet.
    """
    stated = stated_answer(text)
    if stated is not None and (letter := _only_letter(stated, options)):
        return letter
    named = [m for m in _NAMED.finditer(text) if m[2] or (m[3].isupper() and not _is_article(m[3], text, m.end(3)))]
    for kinds in (("answer",), ("option", "choice")):  # "The answer is A. Option B is wrong."
        if chosen := _last([(m[2] or m[3]).upper() for m in named if m[1].lower() in kinds], options):
            return chosen
    if letter := _only_letter(text, options):
        return letter
    bracketed = [match[1] or match[2] or match[3] for match in _BRACKETED.finditer(text)]
    alone = [match[1] for match in _ALONE.finditer(text) if not _is_word(match[1], text, match.end())]
    return _last(bracketed, options) or _last(alone, options)


@register("choice", pure=True)
class Choice(PointwiseReward):
    """Reward 1 for responses that pick the right option, 0 for others; an oracle.

    How the option is found is said at `extract_choice`.
    """

    minimum, maximum = 0.0, 1.0

    def __init__(self, gold: str, options: int = 4) -> None:
        """Set the answer.

        Args:
            gold: Letter of the right option.
            options: How many options there are, named by the first letters of the alphabet.

        Raises:
            RewardSpecError: There are no such options, or the letter is not among them.
        """
        if not 2 <= options <= len(_LETTERS):
            raise RewardSpecError(f"options is {options}; allowed: 2 to {len(_LETTERS)}")
        self._gold, self._options = gold.strip().upper(), options
        if len(self._gold) != 1 or self._gold not in _LETTERS[:options]:
            raise RewardSpecError(f"gold is {gold!r}; allowed: a letter from A to {_LETTERS[options - 1]}")

    async def judge(self, prompt: Prompt, completion: Completion) -> float:
        """Return 1 for the right option, 0 for another or none."""
        return float(self.answer(completion) == self._gold)

    def answer(self, completion: Completion) -> str | None:
        """Return the letter of the option that the completion picks."""
        return extract_choice(completion.text, self._options)


def _only_letter(text: str, options: int) -> str | None:
    match = _ONLY.fullmatch(text) if len(text := text.strip()) <= _LONGEST_ALONE else None
    return _last([match[1].upper()], options) if match else None


def _last(letters: list[str], options: int) -> str | None:
    return next((letter for letter in reversed(letters) if letter in _LETTERS[:options]), None)


def _is_article(letter: str, text: str, end: int) -> bool:
    """Return whether a letter that is named as an answer is the article or the pronoun after all ("Answer: A dog").

    Words that do not follow an article show that it is an option: "The answer is A because …".
    """
    following = re.match(r"[ \t]+([^\W\d_]+)", text[end : end + 24])
    return letter in "AI" and following is not None and following[1].lower() not in _NOT_AFTER_ARTICLES


def _is_word(letter: str, text: str, end: int) -> bool:
    """Return whether a capital letter is the article or the pronoun: another word of its sentence follows."""
    return letter in "AI" and re.match(r"[ \t]+[^\W\d_]", text[end : end + 20]) is not None
