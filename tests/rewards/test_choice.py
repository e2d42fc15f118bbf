from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import Completion
from rewards import RewardSpecError, build
from rewards.choice import Choice, extract_choice


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C", "C"),
        ("(c)", "C"),
        (" c. ", "C"),
        ("**C**", "C"),
        (r"$\text{(C)}$", "C"),
        (r"so \boxed{C}", "C"),
        (r"so \boxed{\text{(B)}}, not (C)", "B"),
        ("#### D", "D"),
        ("The answer is (C).", "C"),
        ("The correct answer is: **C**", "C"),
        ("Answer: C) Paris", "C"),
        ("answer (b)", "B"),
        ("The correct option is B because A is too small.", "B"),
        ("The answer is A? No: the answer is B.", "B"),
        ("I think option (D) is right", "D"),
        ("the final answer is $\\boxed{A}$", "A"),
        ("Answer:\nB", "B"),
        ("It must be C.", "C"),
        ("It must be A.", "A"),
        ("B. Because of that", "B"),
        ("(A) is too small, so (C)", "C"),
        ("The answer is A because B fails.", "A"),
        ("The answer is A since the others fail. D is absurd.", "A"),
        ("The correct option is A and not B.", "A"),
        ("Option A is correct.", "A"),
        ("Answer: C\n\nExplanation: option B would be wrong.", "C"),
        ("The answer is A. Option B is wrong", "A"),
        ("A cat sat on a mat", None),
        ("a", "A"),
        ("the answer is a dog", None),
        ("Answer: A dog", None),
        ("I do not know", None),
        ("The answer is I.", None),
        ("", None),
        ("the answer is 42", None),
        ("Vitamin C-like", None),
        ("#### 3, so A", "A"),
        ("The answer is Z", None),
        ("the options are good. C", "C"),
        ("answers B", "B"),
    ],
)
def test_the_option_that_is_picked(text: str, letter: str | None) -> None:
    assert extract_choice(text, 4) == letter


def test_only_letters_of_options_count() -> None:
    assert extract_choice("The answer is (E)", 5) == "E"
    assert extract_choice("The answer is (E)", 4) is None
    assert extract_choice("The answer is (B), not (E)", 4) == "B"


async def test_right_wrong_and_nothing() -> None:
    group = [Completion(text=text) for text in ("The answer is B", "It is (C)", "a guess")]
    reward = build("choice:gold=b")
    assert await reward.score("q", group) == [1.0, 0.0, 0.0]
    assert [reward.answer(completion) for completion in group] == ["B", "C", None]


@pytest.mark.parametrize("spec", ["choice:gold=E", "choice:gold=AB", 'choice:gold=""', "choice:gold=A,options=1"])
def test_options_that_do_not_exist_are_refused(spec: str) -> None:
    with pytest.raises(RewardSpecError, match="allowed"):
        build(spec)
    assert Choice("E", options=5)


_pieces = st.sampled_from(
    ["answer", " is ", "(", ")", "A", "b", "\\boxed{", "}", "**", "####", "\n", " " * 9, ":", "$"]
)


@given(st.lists(_pieces | st.characters(), max_size=30).map("".join), st.integers(2, 26))
def test_no_text_is_too_much(text: str, options: int) -> None:
    letter = extract_choice(text, options)
    assert letter is None or ("A" <= letter <= "Z" and len(letter) == 1)


@pytest.mark.parametrize(
    "piece",
    [" ", "answer ", "answer is ", "(", "((A", "**", "\n ", "A", "A ", "#### ", "\\boxed{", "answer:\n\n\n", "`"],
)
def test_long_texts_take_no_time(piece: str) -> None:
    began = time.process_time()
    for text in (piece * (100_000 // len(piece)), f"answer{piece * 20_000}", f"{piece * 20_000}z"):
        extract_choice(text)
    assert time.process_time() - began < 1
