from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import Completion
from rewards._tournament import pairings, win_rates


def _group(*texts: str, weights: Sequence[float]) -> list[Completion]:
    return [
        Completion(text=text, log_weight=math.log(weight) if weight else -math.inf)
        for text, weight in zip(texts, weights, strict=True)
    ]


@given(st.integers(0, 30), st.integers(1, 12))
def test_everybody_meets_as_many_others(size: int, opponents: int) -> None:
    texts = [str(number) for number in range(size)]
    pairs = pairings(texts, opponents, place=str.encode)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    met = Counter(text for pair in pairs for text in pair)
    assert all(one != other for one, other in pairs)
    expected = min(opponents + opponents % 2, size - 1)
    assert all(met[text] == expected for text in texts)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3)), min_size=1, max_size=6), st.data())
def test_rates_are_those_of_counting(draws: list[tuple[str, int]], data: st.DataObject) -> None:
    """To all others, a completion of weight n is what n completions of weight 1 are."""
    shares = {
        (one, other): data.draw(st.sampled_from([0.0, 0.5, 0.75, 1.0]))
        for one in "abcd"
        for other in "abcd"
        if one < other
    }
    group = _group(*(text for text, _ in draws), weights=[n for _, n in draws])
    for i, (rate, (text, _)) in enumerate(zip(win_rates(group, shares), draws, strict=True)):
        wins = [
            0.5 if text == other else shares[text, other] if text < other else 1 - shares[other, text]
            for j, (other, n) in enumerate(draws)
            if j != i
            for _ in range(n)
        ]
        assert rate == pytest.approx(sum(wins) / len(wins) if wins else 0.5)


def test_who_was_not_met_is_taken_to_do_like_the_mean_of_those_who_were() -> None:
    group = _group("a", "a", "b", "c", weights=[1, 1, 1, 2])
    assert win_rates(group, {("a", "b"): 1.0}) == pytest.approx([(0.5 + 3) / 4, (0.5 + 3) / 4, 0, None])


def test_extreme_weights() -> None:
    group = [Completion(text=t, log_weight=w) for t, w in zip("abc", (1e6, -1e6, -math.inf), strict=True)]
    shares = {("a", "b"): 1.0, ("a", "c"): 0.0, ("b", "c"): 1.0}
    assert win_rates(group, shares) == [1, 0, 1]
    assert win_rates(group[1:], {("b", "c"): 1.0}) == [0.5, 0]
    assert win_rates(group, {("b", "c"): 1.0, ("a", "c"): 0.0}) == [0, 1, 1]
