"""Real answers: each equals itself however it is written, and no other of a different value."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from backends import Completion
from rewards import MathAnswer, canonical, equivalence_keys, extract_answer

MATH500 = Path(__file__).parents[2] / ".." / "shared" / "data" / "math500" / "test.jsonl"

SAME_VALUE = {
    frozenset(answers)
    for answers in (
        {"90", r"90^\circ"},
        {"120", r"120^\circ"},
        {"36", r"36^\circ"},
        {"30", r"30^\circ"},
        {"15", "15cm^2"},
        {"5", "x=5"},
        {"0.25", r"\frac14"},
        {"1,-2", "-2,1"},
    )
}
"""The different spellings of one value among the answers of different problems, checked by hand."""

_NUMBER = re.compile(r"-?\d*(?:\.\d+)?")
_FRACTION = re.compile(r"(-?)\\frac\{?(\d+)\}?\{?(\d+)\}?")


def _spacing(answer: str) -> str:
    """Other spaces and sizes of brackets."""
    text = re.sub(r"\\left|\\right", "", answer)
    if text == answer:
        text = re.sub(r"(?<!\\)([()\[\]])", lambda m: (r"\left" if m[1] in "([" else r"\right") + m[1], answer)
    return re.sub(r" ?([-+=]) ?", r" \1 ", text).strip()


def _fractions(answer: str) -> str:
    """Fractions by other commands."""
    if r"\dfrac" in answer:
        return answer.replace(r"\dfrac", r"\frac")
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", answer)
    return text.replace(r"\frac", r"\dfrac")


def _markup(answer: str) -> str:
    """Dollars, display style, thin spaces."""
    return r"$\displaystyle\, " + answer.replace(", ", r",\; ") + r"\,.$"


def _braces(answer: str) -> str:
    """Whatever LaTeX does not show."""
    return rf" {{{answer}}}\ "


def _signs(answer: str) -> str:
    """Products and units by other signs, lists in another order."""
    if re.fullmatch(r"[\d, ]*, [\d, ]*", answer):
        return ",".join(sorted(answer.split(", "), reverse=True))
    text = re.sub(r"(?<![\d^_{.])(\d+) ?(?=\\pi|\\sqrt|[a-zA-Z])", r"\1\\cdot ", answer.replace(r"\!", ""))
    text = re.sub(r"\\(?:text|mbox)\{( \w+)\}", r"\1", text.replace(r"^\circ", " degrees").replace(r"\$", ""))
    text = re.sub(r"_\{(\d)\}$", r"_\1", text) if "_{" in text else re.sub(r"_(\d)", r"_{\1}", text)
    text = text.replace(",", "") if re.fullmatch(r"[\d,]+", text) else text
    return text.replace(r"\pi", "π").replace(" x", "(x)" if "cot" in text else " x")


def _sentence(answer: str) -> str:
    """The end of a response."""
    return extract_answer(rf"So there are 3 cases, and the answer is $\boxed{{{answer}}}$.") or ""


def _marked(answer: str) -> str:
    """GSM8K's mark."""
    return extract_answer(f"First, 1 + 1 = 2.\n#### {answer}") or ""


def _value(answer: str) -> str:
    """The same value, computed otherwise."""
    if match := re.fullmatch(r"-?\d+", answer):
        return rf"\frac{{{2 * int(answer)}}}{{2}}"
    if match := _FRACTION.fullmatch(answer):
        return f"{match[1]}{3 * int(match[2])}/{3 * int(match[3])}"
    if _NUMBER.fullmatch(answer):
        value = Fraction(answer)
        return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    if match := re.fullmatch(r"\\text\{(.*)\}", answer):
        return match[1].strip("()").upper()
    if "matrix" in answer:
        return answer.replace("pmatrix", "bmatrix").replace("1/5", "0.2")
    terms = re.findall(r"[-+]?[^-+]+", answer.replace(" ", ""))
    if len(terms) > 1 and not re.search(r"[(\[{,=\\]", answer):
        return "".join(term if term[0] in "+-" else f"+{term}" for term in reversed(terms))
    return re.sub(r"\\sqrt\{(\d+)\}", r"{\1}^{\\frac{1}{2}}", answer)


REWRITINGS: list[Callable[[str], str]] = [_markup, _braces, _spacing, _fractions, _signs, _value, _sentence, _marked]


@pytest.fixture(scope="module")
def golds() -> list[str]:
    if not MATH500.exists():
        pytest.skip("MATH500 is not here")
    return [json.loads(line)["answer"] for line in MATH500.read_text(encoding="utf-8").splitlines()]


async def test_every_answer_equals_itself_in_all_rewritings(golds: list[str], capsys: pytest.CaptureFixture) -> None:
    table: dict[str, Counter[str]] = {}
    misses = []
    keys = await equivalence_keys(golds)
    for rewrite in REWRITINGS:
        rewritten = [rewrite(gold) for gold in golds]
        counts = table.setdefault(rewrite.__doc__ or "", Counter())
        for gold, key, text, other in zip(golds, keys, rewritten, await equivalence_keys(rewritten), strict=True):
            counts["equal" if key == other else "different"] += 1
            counts["spelled otherwise"] += text != gold
            if key != other:
                misses.append((gold, text))
    with capsys.disabled():
        print("\n\nMATH500: 500 answers against themselves, rewritten")
        print(f"{'':60}{'equal':>8}{'different':>11}{'spelled otherwise':>19}")
        for name, counts in table.items():
            print(f"{name:60}{counts['equal']:>8}{counts['different']:>11}{counts['spelled otherwise']:>19}")
    assert misses == []
    assert all(len({rewrite(gold) for rewrite in REWRITINGS} - {gold}) >= 3 for gold in golds)


async def test_no_answer_equals_one_of_another_value(golds: list[str], capsys: pytest.CaptureFixture) -> None:
    spellings: defaultdict[str, set[str]] = defaultdict(set)
    keys = await equivalence_keys(golds)
    for key, gold in zip(keys, golds, strict=True):
        spellings[key].add(canonical(gold))
    equal = sum(a == b for i, a in enumerate(keys) for b in keys[:i])
    with capsys.disabled():
        print(f"\n\nMATH500: {len(golds) * (len(golds) - 1) // 2} pairs of problems: {equal} with equal answers,")
        print(f"{len(spellings)} values in {sum(map(len, spellings.values()))} spellings")
    assert {frozenset(same) for same in spellings.values() if len(same) > 1} == SAME_VALUE


async def test_the_oracle_knows_every_answer_in_its_own_solution(golds: list[str]) -> None:
    solutions = [json.loads(line)["solution"] for line in MATH500.read_text(encoding="utf-8").splitlines()]
    wrong = [
        gold
        for gold, solution in zip(golds, solutions, strict=True)
        if await MathAnswer(gold).score("q", [Completion(text=solution)]) != [1.0]
    ]
    assert wrong == []
