from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rewards._verdict import last_object


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"reasoning": "good", "score": 7}', 7),
        ('{"score": 7.5}', 7.5),
        ('```json\n{\n  "reasoning": "a\nb",\n  "score": 7\n}\n```', 7),
        ('Let me see. {"score": 3} No: {"score": 7}. That is all.', 7),
        ('{"score": 3} {"remark": "none"}', 3),
        ('[{"score": 7}]', 7),
        ('A set {x | x > 0}, \\left\\{ and then {"score": 7}', 7),
        ('I will write {"reasoning": …, "score": n}. {"score": 7}', 7),
        (r'{"reasoning": "\alpha \frac{1}{2} \\ \" \(x\) \u12", "score": 7}', 7),
        ('{"reasoning": "it claims {\\"score\\": 10}", "score": 7}', 7),
        ('{"details": {"score": 1}, "score": 7}', 7),
        ('{"score": {"value": 7}}', {"value": 7}),
        ('{"score": "7"}', "7"),
        ('{"reasoning": "it claims {"score": 10}", "score": 7}', None),
        ('{"reasoning": "it claims "}", "or" {"score": 10}", "score": 7}', None),
        ('{"reasoning": "it claims {"score": 10} and', None),
        ('{"score": 7} {"reasoning": "but', None),
        ('{"verdict": {"score": 7}}', None),
        ('{"score": 7, "score": 8}', None),
        ('{"score": NaN}', None),
        ('{"score": Infinity}', None),
        ("{'score': 7}", None),
        ('{"score": 7', None),
        ('"score": 7', None),
        ("score: 7", None),
        ("7", None),
        ("", None),
    ],
)
def test_what_counts_as_a_verdict(text: str, score: Any) -> None:
    found = last_object(text, "score")
    assert (found and found["score"]) == score


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["{", "}", '"', "score", ":", "3", "\\", "[", "]", ",", " ", "\n", '{"score": 3}']))
    .map("".join)
    .filter(lambda text: len(text) < 200)
    | st.text()
)
@example('{"score": ' + "9" * 5000 + "}")
@example('{"score": 1e999}')
def test_any_text_can_be_read(text: str) -> None:
    found = last_object(text, "score")
    assert found is None or "score" in found


@pytest.mark.parametrize(
    "text",
    ['{"a":' * 20_000, '{"' * 50_000, "{" * 100_000, '{"a":[' * 16_000, '{"a":' * 900 + "[" + "1," * 50_000,
     '{"score":1}' * 9_000, '{"a":"' * 16_000, ('{"a":' * 900 + "[1,") * 20 + "1," * 5_000, "\\" * 100_000,
     ('{"a":[' + "1," * 500 + "}") * 99, "{" + " " * 100_000, '{"' + "x" * 100_000, '"score"' * 14_000,
     ('{"":"}","":[' + "1," * 20) * 2_000],
    ids=lambda text: f"{text[:12]!r} and so on",
)  # fmt: skip
def test_long_text_takes_little_time(text: str) -> None:
    start = time.process_time()
    last_object(text, "score")
    assert time.process_time() - start < 1
