"""Intervals for measured rates and means of what was measured: pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist, fmean
from typing import NamedTuple


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def wilson_interval(successes: int, total: int, *, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval of a success rate.

    Unlike the normal approximation it stays within [0, 1] and does not collapse at rates of 0 and 1 (E. B. Wilson,
    "Probable inference, the law of succession, and statistical inference", JASA 22, 1927).

    Args:
        successes: Number of successes, 0 to ``total``.
        total: Number of trials; without any the interval is [0, 1].
        confidence: Coverage, above 0 and below 1.

    Raises:
        ValueError: An argument is out of range.
    """
    if not 0 <= successes <= total:
        raise ValueError(f"successes is {successes}; allowed: 0 to total, which is {total}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; allowed: above 0 and below 1")
    if total == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate = successes / total
    scale = 1 + z * z / total
    center = (rate + z * z / (2 * total)) / scale
    half = z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total)) / scale
    # At rates of 0 and 1 one end is the rate itself; rounding must not put it beside.
    return Interval(
        0.0 if successes == 0 else max(0.0, center - half), 1.0 if successes == total else min(1.0, center + half)
    )


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are there, or None where there are none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
