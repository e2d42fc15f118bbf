"""Problems from a file: what is read, and what is said of a line that is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ets_agent import ConfigError
from ets_agent.evaluation import read_problems

GSM8K = Path(__file__).parents[2] / ".." / "shared" / "data" / "gsm8k" / "test.jsonl"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "problems.jsonl"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("42", "42"),
        (42, "42"),
        (0.5, "0.5"),
        ("6 * 7 = <<6*7=42>>42\n#### 1,042", "1,042"),
        ("#### 42\n", "42"),
        (r"So it is \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        (" yes ", "yes"),
    ],
)
def test_an_answer_is_what_it_states(path: Path, answer: Any, expected: str) -> None:
    path.write_text(json.dumps({"question": "How many?", "answer": answer, "level": 5}))
    [problem] = read_problems(path)
    assert (problem.question, problem.answer) == ("How many?", expected)


def test_blank_lines_do_not_count_and_a_limit_takes_the_first(path: Path) -> None:
    lines = [
        "\ufeff" + json.dumps({"question": "Grüße?", "answer": 1}),
        "",
        "  ",
        '{"question": "b", "answer": 2}\r',
        "",
    ]
    path.write_text("\n".join([*lines, "no JSON"]), encoding="utf-8")
    assert [problem.question for problem in read_problems(path, 2)] == ["Grüße?", "b"]
    with pytest.raises(ConfigError, match=r"problems\.jsonl, line 6: this is no JSON: .*; allowed: one object a line"):
        read_problems(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[1]", "no JSON object but a list"),
        (b"[" * 100_000, "this is no JSON"),
        (b"\xff", "this is no JSON"),
        (b"{}", "there is no 'question', only nothing"),
        (b'{"problem": "p", "answer": 1}', "there is no 'question', only 'problem', 'answer'"),
        (b'{"question": "q"}', "there is no 'answer', only 'question'"),
        (b'{"question": " ", "answer": 1}', "the question is ' '; allowed: a text"),
        (b'{"question": 1, "answer": 1}', "the question is 1; allowed: a text"),
        (b'{"question": "q", "answer": ""}', "the answer is ''; allowed: a text or a number"),
        (b'{"question": "q", "answer": null}', "the answer is None; allowed"),
        (b'{"question": "q", "answer": true}', "the answer is True; allowed"),
        (b'{"question": "q", "answer": [1]}', "the answer is .1.; allowed"),
        (b'{"question": "q", "answer": NaN}', "the answer is nan; allowed"),
        (
            rb'{"question": "q\ud800", "answer": 1}',
            r"the question has .ud800, half of a surrogate pair; allowed: whole",
        ),
        (rb'{"question": "q", "answer": "\udfff 1"}', r"the answer has .udfff, half of a surrogate pair"),
        (rb'{"question": "q", "answer": "#### \ud83d"}', r"the answer has .ud83d, half of a surrogate pair"),
    ],
)
def test_a_line_that_is_no_problem_is_named(path: Path, line: bytes, message: str) -> None:
    path.write_bytes(b'{"question": "q", "answer": 1}\n\n' + line + b"\n")
    with pytest.raises(ConfigError, match=rf"problems\.jsonl, line 3: .*{message}"):
        read_problems(path)


def test_a_whole_surrogate_pair_is_a_character(path: Path) -> None:
    path.write_bytes(rb'{"question": "\ud83d\ude00?", "answer": 1}')
    assert read_problems(path)[0].question == "\U0001f600?"


def test_a_file_without_problems_is_refused(path: Path) -> None:
    path.write_text("\n\n")
    with pytest.raises(ConfigError, match=r"there are no problems in .*problems\.jsonl"):
        read_problems(path)


@pytest.mark.skipif(not GSM8K.exists(), reason="needs GSM8K's test set")
def test_gsm8k_is_read_as_it_stands() -> None:
    problems = read_problems(GSM8K)
    assert len(problems) == 1319
    assert problems[0].answer == "18"
    assert all(problem.answer.replace(",", "").removeprefix("-").isdigit() for problem in problems)
