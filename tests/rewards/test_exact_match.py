from __future__ import annotations

import pytest

from backends import Completion
from rewards import ExactMatch, RewardSpecError, build


@pytest.mark.parametrize(
    ("text", "right"),
    [("New York", 1), (" New\n York ", 1), ("#### New York", 1), (r"It is \boxed{New York}.", 1), ("new york", 0),
     ("", 0),
     ("It is New York", 0)],
)  # fmt: skip
async def test_a_marked_answer_or_all_of_the_response_is_compared(text: str, right: float) -> None:
    assert await build("exact_match:gold=New York").score("q", [Completion(text=text)]) == [right]


async def test_several_texts_may_be_right_in_any_case() -> None:
    reward = build({"name": "exact_match", "gold": ["yes", "Straße"], "ignore_case": True})
    assert await reward.score("q", [Completion(text=t) for t in ("YES", "strasse", "no")]) == [1, 1, 0]


@pytest.mark.parametrize("gold", ["", "  ", [], ["a", ""]])
def test_an_empty_answer_is_refused(gold: str | list[str]) -> None:
    with pytest.raises(RewardSpecError, match="gold answer must be"):
        ExactMatch(gold)
