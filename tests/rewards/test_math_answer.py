from __future__ import annotations

import math

import pytest

from backends import Completion
from rewards import MathAnswer, RewardSpecError, build


@pytest.mark.parametrize("gold", [1234, 1234.0, "1234", "1,234", " $1,234.00$ ", r"\text{1234}"])
async def test_right_answers_get_one(gold: str | int | float) -> None:
    texts = ["#### 1,234", r"\boxed{1234.0}", "it is 1234.", "#### 1235", "1234 and 5", "no idea"]
    assert await MathAnswer(gold).score("q", [Completion(text=text) for text in texts]) == [1, 1, 1, 0, 0, 0]


async def test_failed_draws_have_no_verdict() -> None:
    assert await MathAnswer(1).score("q", [Completion(text="1", finish_reason="error")]) == [None]


@pytest.mark.parametrize("gold", [math.nan, math.inf, "", " ", "$"])
def test_gold_must_be_an_answer(gold: str | float) -> None:
    with pytest.raises(RewardSpecError, match="gold answer"):
        MathAnswer(gold)


@pytest.mark.parametrize(
    ("gold", "right"),
    [("42", "42"), ("1,234", "1234"), ('"7"', "7"), ("007", "7"), (" -5 ", "-5"), ('"x = 3, y = 4"', "#### x=3,y=4")],
)
async def test_gold_from_a_specification(gold: str, right: str) -> None:
    reward = build(f"math_answer:gold={gold}")
    assert await reward.score("q", [Completion(text=right), Completion(text="8")]) == [1, 0]


def test_answer_is_as_written() -> None:
    assert MathAnswer(1).answer(Completion(text="#### 1,000")) == "1,000"
