"""Find the final answer in a response and bring it to a canonical form, so that equal answers vote together.

Everything here is string work in linear time; nothing is evaluated.
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction

_NUMBER = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_FRACTION = r"\\[dt]?frac\{-?[0-9]+\}\{-?[0-9]+\}|(?:[0-9]{1,9} )?[0-9]+/[0-9]+"

_MARKED = re.compile(r"####([^\n]*)")
# "#### 3" and "#### $1,200 dollars" state an answer; "#### 3. Add them up" is a Markdown heading.
_MARKED_NUMBER = re.compile(rf"[+-]?\$?[+-]?(?:{_FRACTION}|{_NUMBER})\$?\s*(?:%|[A-Za-z]+)?\.?")
_BOX_TOKEN = re.compile(r"\\(?P<box>boxed|fbox)\s*\{|\\[{}]|[{}]")
# Digits that belong to a name ("x3") or to the tail of a version ("1.2.3") are no number. A minus is a sign only where
# no operand stands before it, so that "5-3" ends in 3.
_STARTED_BY = r"(?<![\w.)\]}%])(?P<sign>[+-])\$?|(?<![\w.])(?=\.)|(?<!\w)(?<![0-9]\.)(?=[0-9])|(?=\\)"
_LAST = re.compile(rf"(?:{_STARTED_BY})(?P<number>{_FRACTION}|{_NUMBER})")

_MINUS_SIGNS = str.maketrans({"\u2212": "-", "\ufe63": "-", "\uff0d": "-", "\u2013": "-"})
_MAX_MARKUP = 512  # markup is removed until nothing changes, which is quadratic at worst; longer answers keep theirs
_IGNORED_MARKUP = re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|(?<!\\)\\[,;:!()\[\]$]|\$")
_MARKUP_SPACE = re.compile(r"(?<!\\)\\ |\\q?quad(?![A-Za-z])|~|\s+")
_WRAPPER_TOKEN = re.compile(
    r"(?P<wrapper>\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|boxed|fbox)\s*\{)|\\[{}]|[{}]"
)
# Spaces between two letters or two digits carry meaning ("New York", "1 2"); all others are a matter of taste.
_IDLE_SPACE = re.compile(r"(?<!\w) | (?!\w)|(?<=[0-9]) (?![0-9])")

_DECIMAL = re.compile(
    r"(?P<sign>[+-]?)(?:(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.(?P<digits>[0-9]*))?|\.(?P<bare>[0-9]+))"
    # Exponents of more than three digits stay text: "1e999999999" must not be written out.
    r"(?:[eE](?P<exponent>[+-]?[0-9]{1,3}))?"
    r"(?P<unit>[^0-9.,][^0-9,]*)?"
)
_RATIO = re.compile(
    r"(?P<sign>-?)(?:\\frac\{(?P<top>-?[0-9]{1,40})\}\{(?P<bottom>-?[0-9]{1,40})\}"
    r"|(?P<left>[0-9]{1,40})/(?P<right>-?[0-9]{1,40}))"
)


def extract_answer(text: str) -> str | None:
    r"""Return the final answer that a response states, or None if it states none.

    In order of preference:

    1. What follows the last ``####`` on its line, the mark of GSM8K. A line that is not the last one of the response
       counts only if it holds a number, because ``#### Step two`` in the middle is a Markdown heading.
    2. The content of the last complete ``\boxed{…}`` (the innermost, where they are nested).
    3. The last number of the text, a fraction such as ``3/4`` or ``\frac{3}{4}`` being one number. ``1,234.50`` is one
       number, ``3.`` at the end of a sentence is 3, and the last number of ``5-3`` is 3. Digits within a name, such as
       ``x3``, are none. Signs of currency and units are left behind.

    Args:
        text: A response of any length.

    Returns:
        The answer as it is written there, without surrounding whitespace; see `canonical` for comparing.
    """
    return stated_answer(text) or _last_number(text)


def stated_answer(text: str) -> str | None:
    r"""Return the final answer that a response marks as such, by ``####`` or ``\boxed{…}``; None if it marks none."""
    return _marked(text) or _boxed(text)


def canonical(answer: str) -> str:
    r"""Return the form under which equal answers are equal strings; applying it twice changes nothing.

    Removed are whitespace without meaning, ``$``, LaTeX wrappers (``\text{}``, ``\boxed{}``, ``\left``, ``\(``, thin
    spaces), trailing full stops and a leading ``+``; in numbers also thousands commas and idle zeros, so that
    ``1,234.50`` is ``1234.5`` and ``.5`` is ``0.5``. Fractions of whole numbers become decimals where these are finite
    (``\frac{1}{2}`` is ``0.5``) and lowest terms where not. Units, percent signs and upper case stay: ``50%`` is not
    ``50`` and not ``0.5``.

    Args:
        answer: An answer, as `extract_answer` returns it. Beyond some hundred characters only plain numbers and
            whitespace are brought into form.

    Returns:
        The canonical form, empty if nothing is left of the answer.
    """
    text = " ".join(answer.translate(_MINUS_SIGNS).split())
    if len(text) > _MAX_MARKUP:
        number = _DECIMAL.fullmatch(text.removesuffix("."))
        return text if number is None or number["unit"] else _plain(number)
    before = None
    while text != before:  # removing one piece of markup may join the parts of another
        before, text = text, _without_markup(text)
    if ratio := _RATIO.fullmatch(text):
        return _lowest_terms(ratio) or text
    if number := _DECIMAL.fullmatch(text):
        return _plain(number) + (number["unit"] or "")
    return text


def without_layout(text: str) -> str:
    """Return LaTeX without what only concerns its looks: dollars, sizes, thin spaces."""
    return _MARKUP_SPACE.sub(" ", _IGNORED_MARKUP.sub("", text))


def _marked(text: str) -> str | None:
    text = text.rstrip()
    last = None
    for match in _MARKED.finditer(text):
        content = match[1].strip().strip("*_`").strip()
        if content and (match.end() == len(text) or _MARKED_NUMBER.fullmatch(content.translate(_MINUS_SIGNS))):
            last = content
    return last


def _boxed(text: str) -> str | None:
    opened: list[int | None] = []  # where the content of each open brace begins, None for a brace that is no box
    last, last_start = None, -1
    for match in _BOX_TOKEN.finditer(text):
        token = match[0]
        if match["box"]:
            opened.append(match.end())
        elif token == "{":
            opened.append(None)
        elif token == "}" and opened:
            start = opened.pop()
            if start is not None and start > last_start and (content := text[start : match.start()].strip()):
                last, last_start = content, start
    return last


def _last_number(text: str) -> str | None:
    matches = deque(_LAST.finditer(text.translate(_MINUS_SIGNS)), maxlen=1)
    if not matches:
        return None
    return ("-" if matches[0]["sign"] == "-" else "") + matches[0]["number"]


def _without_markup(text: str) -> str:
    text = text.replace("{,}", ",").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = without_layout(_unwrapped(text))
    text = _IDLE_SPACE.sub("", text).rstrip(". ")
    return text.lstrip("+ ")


def _unwrapped(text: str) -> str:
    kept: list[bool] = []  # for each open brace, whether it stays
    parts: list[str] = []
    position = 0
    for match in _WRAPPER_TOKEN.finditer(text):
        parts.append(text[position : match.start()])
        position = match.end()
        token = match[0]
        if match["wrapper"]:
            kept.append(False)
        elif token == "{":
            kept.append(True)
            parts.append(token)
        elif token != "}" or not kept or kept.pop():
            parts.append(token)
    parts.append(text[position:])
    return "".join(parts)


def _plain(number: re.Match[str]) -> str:
    whole = (number["whole"] or "").replace(",", "")
    digits = number["digits"] or number["bare"] or ""
    return _decimal(number["sign"] == "-", whole + digits, len(whole) + int(number["exponent"] or 0))


def _decimal(negative: bool, digits: str, point: int) -> str:
    """Write out a number whose decimal point stands after the first ``point`` digits."""
    digits = "0" * -point + digits.ljust(point, "0")
    point = max(point, 0)
    whole = digits[:point].lstrip("0") or "0"
    rest = digits[point:].rstrip("0")
    text = f"{whole}.{rest}" if rest else whole
    return f"-{text}" if negative and text != "0" else text


def _lowest_terms(ratio: re.Match[str]) -> str | None:
    top = int(ratio["top"] or ratio["left"])
    bottom = int(ratio["bottom"] or ratio["right"])
    if bottom == 0:
        return None
    value = Fraction(-top if ratio["sign"] else top, bottom)
    rest, places = value.denominator, 0
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest //= prime
            power += 1
        places = max(places, power)
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).zfill(places)
    return _decimal(value < 0, digits, len(digits) - places)
