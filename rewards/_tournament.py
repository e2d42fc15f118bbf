"""Comparing responses in pairs: who meets whom, and how much of its comparisons each response wins."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

from backends import Completion
from rewards import _weights

Pair = tuple[str, str]


def pairings(texts: Collection[str], opponents: int, *, place: Callable[[str], bytes]) -> list[Pair]:
    """Return pairs of different texts in which each meets so many others, or one more, or all if there are no more.

    Texts stand in a circle and meet their neighbors.

    Args:
        texts: Different texts, in any order.
        opponents: How many others each is to meet.
        place: Decides the order in the circle and within a pair.
    """
    circle = sorted(texts, key=place)
    steps = range(1, min((opponents + 1) // 2, len(circle) - 1) + 1)
    met = {(min(i, j), max(i, j)) for step in steps for i in range(len(circle)) for j in [(i + step) % len(circle)]}
    return [(circle[i], circle[j]) for i, j in sorted(met)]


def win_rates(completions: Sequence[Completion], shares: Mapping[Pair, float]) -> list[float | None]:
    """Return for each completion which share of the others it wins against, None if no comparison has an outcome.

    Others count by their weight. Equal texts tie; those that were not met, or without an outcome, are taken to do like
    the mean of those that were. Where no other has any weight, it is one half.

    Args:
        completions: The responses.
        shares: How much of the win is the first one's, for pairs with an outcome: 1 for a win, 0.5 for a tie.
    """
    table = {**shares, **{(b, a): 1 - share for (a, b), share in shares.items()}}
    return [
        _win_rate(completion.text, [*completions[:i], *completions[i + 1 :]], table)
        for i, completion in enumerate(completions)
    ]


def _win_rate(text: str, others: Sequence[Completion], table: Mapping[Pair, float]) -> float | None:
    given = _weights.weights([other.log_weight for other in others])
    equal = math.fsum(weight for weight, other in zip(given, others, strict=True) if other.text == text)
    different = math.fsum(weight for weight, other in zip(given, others, strict=True) if other.text != text)
    if not different:
        return 0.5
    met = [(share, other.log_weight) for other in others if (share := table.get((text, other.text))) is not None]
    if not met:
        return None
    shares, log_weights = zip(*met, strict=True)
    mean = _weights.mean(shares, log_weights)
    if mean is None:  # Only such as stand for no draw were met.
        mean = math.fsum(shares) / len(shares)
    return (equal / 2 + different * mean) / (equal + different)
