from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ets_agent.evaluation import wilson_interval
from ets_agent.evaluation.statistics import mean_of_known


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_intervals(successes: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(successes, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_an_interval_holds_the_rate_and_mirrors(counts: tuple[int, int]) -> None:
    successes, total = counts
    low, high = wilson_interval(successes, total)
    assert 0 <= low <= successes / total <= high <= 1
    mirrored = wilson_interval(total - successes, total)
    assert (low, high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low))


def test_more_confidence_is_a_wider_interval() -> None:
    narrow, wide = wilson_interval(5, 10, confidence=0.5), wilson_interval(5, 10, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_no_trials_say_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "total", "confidence"), [(-1, 3, 0.95), (4, 3, 0.95), (1, 3, 0.0), (1, 3, 1.0)])
def test_impossible_arguments_are_refused(successes: int, total: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="allowed"):
        wilson_interval(successes, total, confidence=confidence)


def test_a_mean_leaves_out_what_is_not_known() -> None:
    assert mean_of_known([0.5, None, 1.0]) == 0.75
    assert mean_of_known([None, None]) is None
    assert mean_of_known([]) is None
