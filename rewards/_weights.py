"""Completions that stand for more or fewer draws than one, by their log-weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from backends import Completion
from rewards.errors import RewardError


def check_weights(completions: Sequence[Completion]) -> None:
    """Refuse log-weights that are NaN or plus infinity.

    Raises:
        RewardError: There is one.
    """
    for completion in completions:
        if math.isnan(completion.log_weight) or completion.log_weight == math.inf:
            raise RewardError(f"the log-weight of a completion must be finite or -inf, not {completion.log_weight}")


def weights(log_weights: Sequence[float]) -> list[float]:
    """Return the weights relative to the largest of them; all 0 if none is above 0."""
    largest = max(log_weights, default=-math.inf)
    return [0.0 if largest == -math.inf else math.exp(log_weight - largest) for log_weight in log_weights]


def mean(values: Sequence[float], log_weights: Sequence[float]) -> float | None:
    """Return the weighted mean, whose rounding does not depend on the order; None if nothing has any weight."""
    given = weights(log_weights)
    # `fsum` rounds once.
    total = math.fsum(given)
    if not total:
        return None
    found = math.fsum(weight * value for weight, value in zip(given, values, strict=True)) / total
    return min(max(found, min(values)), max(values))
