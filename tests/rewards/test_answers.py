from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rewards import canonical, extract_answer

GSM8K = Path(__file__).parents[2] / ".." / "shared" / "data" / "gsm8k" / "test.jsonl"

fragments = st.lists(
    st.sampled_from(
        [
            *"0123456789.,-+−–$ \n%xe{}/\\~",
            "####",
            r"\boxed{",
            r"\text{",
            r"\frac{1}{",
            r"\left",
            r"\(",
            r"\te",
            "1,234",
        ]
    )
    | st.characters(),
    max_size=25,
).map("".join)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 + 4 = 7\n#### 7", "7"),
        ("#### 1\n#### 2", "2"),
        ("#### 1,234 ", "1,234"),
        ("#### -5", "-5"),
        ("#### 42\n\nI hope that this helps, as of 2024.", "42"),
        ("#### yes", "yes"),
        ("#### Step 2: add\n3 + 4 = 7", "7"),
        ("#### 2. Add them\nwhich gives 7", "7"),
        ("####\nthe answer is 8", "8"),
        (r"\boxed{1} and #### 2", "2"),
        (r"thus \boxed{\frac{1}{2}}, as 7 says", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{2}.", "2"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{ } but 4", "4"),
        (r"\boxed{x = \boxed{3}}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox{9} 1", "9"),
        ("It is 3.", "3"),
        ("Total: $1,234.50 in all", "1,234.50"),
        ("1,2345", "2345"),
        ("5-3", "3"),
        ("5 - 3", "3"),
        ("pages 5–3", "3"),
        ("it falls to -3", "-3"),
        ("it falls to −3", "-3"),
        ("a loss of -$5", "-5"),
        ("(-3)", "-3"),
        ("x = -.5", "-.5"),
        ("probably 3/4", "3/4"),
        (r"so -\frac{3}{4}", r"-\frac{3}{4}"),
        ("and so...42", "42"),
        ("50% of it", "50"),
        ("5kg", "5"),
        ("x3 is 4, x5 too", "4"),
        ("x3", None),
        ("none here", None),
        ("", None),
    ],
)
def test_final_answer_of_a_text(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "equal",
    [
        [
            "42",
            "42.0",
            " 42 ",
            "$42$",
            "42.",
            "+42",
            "042",
            r"\text{42}",
            r"\boxed{42}",
            r"\$42",
            "4.2e1",
            "84/2",
            "42.00.",
        ],
        ["0.5", ".5", "0.50", r"\frac{1}{2}", r"\dfrac{2}{4}", "1/2", "5e-1"],
        ["0", "-0", "0.0", "+0", "0/7"],
        ["1234.5", "1,234.50", "$1,234.5", r"1{,}234.5", r"1\,234.5"],
        ["-5", "−5", "- 5", "-$5", "-5.0", r"-\frac{10}{2}"],
        ["1/3", r"\frac{2}{6}", "3/9"],
        ["(1,2)", "( 1, 2 )", r"\left( 1, 2 \right)", "$(1,2)$"],
        ["New York", r"\text{New York}", " New  York. "],
        ["50%", "50 %", "50.0%", r"50\ %"],
        ["1200 dollars", "1,200 dollars"],
    ],
)
def test_equal_answers_have_one_form(equal: list[str]) -> None:
    assert {canonical(answer) for answer in equal} == {canonical(equal[0])}


def test_canonical_form_is_readable() -> None:
    assert [canonical(a) for a in ("1,234.50", ".5", "-0.125000", "−007", r"\frac{1}{8}", "Yes.", "$")] == [
        "1234.5", "0.5", "-0.125", "-7", "0.125", "Yes", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other"),
    [("42", "-42"), ("42", "4.2"), ("50%", "50"), ("50%", "0.5"), ("5 kg", "5 g"), ("1 2", "12"), ("(1,234)", "1234"),
     ("1,23", "123"), ("A", "a"), ("x+1", "x-1"), ("1/3", "0.333"), ("1/0", "0"), ("10", "1")],
)  # fmt: skip
def test_different_answers_stay_apart(one: str, other: str) -> None:
    assert canonical(one) != canonical(other)


@given(fragments | st.text())
def test_any_text_has_an_answer_or_none(text: str) -> None:
    answer = extract_answer(text)
    assert answer is None or (answer and answer == answer.strip())


@given(fragments | st.text())
@example("1e999")
@example(r"\te\text{}xt{5}")
@example("5. .x")
@example("x" + " " * 3000 + "$y$")
@example("0" * 3000 + "5 $x$")
def test_canonical_form_of_a_canonical_form_is_itself(text: str) -> None:
    assert canonical(canonical(text)) == canonical(text)


@given(st.integers())
def test_whole_numbers_are_read_with_and_without_commas(number: int) -> None:
    for written in (str(number), f"{number:,}", f"{number}.0", f"{number:,}.00"):
        for text in (f"#### {written}", rf"so \boxed{{{written}}} it is", f"It is {written}."):
            answer = extract_answer(text)
            assert answer is not None
            assert canonical(answer) == str(number)


@given(st.fractions(max_denominator=10**6))
def test_fractions_are_equal_however_they_are_written(value: object) -> None:
    from fractions import Fraction

    assert isinstance(value, Fraction)
    top, bottom = value.numerator, value.denominator
    forms = {
        canonical(f"{top}/{bottom}"),
        canonical(rf"\frac{{{3 * top}}}{{{3 * bottom}}}"),
        canonical(f"{-top}/{-bottom}"),
    }
    assert len(forms) == 1
    assert Fraction(forms.pop()) == value


@pytest.mark.parametrize(
    "text",
    ["9" * 10_000, "0" * 10_000 + ".5", "1e999999999", "-1E-999999999", "1/" + "9" * 10_000, r"\boxed{" * 20_000,
     r"\boxed{" * 20_000 + "1" + "}" * 20_000, "{" * 50_000, "#### a\n" * 20_000, "#" * 100_000, "1," * 50_000,
     "1,234" * 20_000, "-" * 100_000, "." * 100_000, r"\boxed" + " " * 100_000, "1e" * 50_000, r"\te" * 500 + "xt{"],
    ids=lambda text: f"{text[:8]!r} and so on",
)  # fmt: skip
def test_hostile_text_takes_little_time(text: str) -> None:
    start = time.process_time()
    extract_answer(text)
    canonical(text)
    assert time.process_time() - start < 1


def test_huge_numbers_are_kept_to_the_digit() -> None:
    digits = "9" * 10_000
    assert canonical(digits + ".0") == canonical("0" + digits) == digits
    assert canonical("1e999999999") == "1e999999999"


@pytest.mark.skipif(not GSM8K.exists(), reason="the GSM8K test set is not beside this repository")
def test_all_gold_answers_of_gsm8k_are_found() -> None:
    solutions = [json.loads(line)["answer"] for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    assert len(solutions) == 1319
    for solution in solutions:
        gold = solution.rpartition("####")[2].strip()
        assert extract_answer(solution) == gold
        assert canonical(gold) == str(int(gold.replace(",", "")))
