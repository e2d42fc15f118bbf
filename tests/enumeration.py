"""What ETS should sample from, computed exactly, and how far a sample is from it."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from backends import Backend, Completion, Prompt, SamplingParams
from backends.enumerable import EnumerableBackend
from ets_agent import ETS, Result
from rewards import Reward

KL_COEF = 0.1
MAX_TOKENS = 4


def value(completion: Completion) -> float:
    """A reward between 0 and 1 that is a function of the text alone and means nothing."""
    return hashlib.sha256(completion.text.encode()).digest()[0] / 255


class Valued(Reward):
    """`value` as a reward."""

    pointwise = True

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        return [None if completion.finish_reason == "error" else value(completion) for completion in completions]


def by_text(distribution: Mapping[Completion, float]) -> dict[str, float]:
    """A distribution of responses as one of texts."""
    texts: dict[str, float] = {}
    for completion, probability in distribution.items():
        texts[completion.text] = texts.get(completion.text, 0.0) + probability
    return texts


async def optimum(model: EnumerableBackend, **params: Any) -> dict[str, float]:
    """The optimal policy p*, exactly."""
    start = await model.begin("q", max_tokens=MAX_TOKENS, params=SamplingParams(**params))
    return by_text(model.policy(start, value, kl_coef=KL_COEF))


async def reference(model: EnumerableBackend, **params: Any) -> dict[str, float]:
    """p_ref, exactly."""
    start = await model.begin("q", max_tokens=MAX_TOKENS, params=SamplingParams(**params))
    return by_text(model.responses(start))


def distance(found: Mapping[str, float], expected: Mapping[str, float]) -> float:
    """Total variation between two distributions of texts; frequencies need not be normalized."""
    total, whole = sum(found.values()), sum(expected.values())
    return sum(abs(found.get(t, 0) / total - expected.get(t, 0) / whole) for t in {*found, *expected}) / 2


def noise_floor(expected: Mapping[str, float], count: int) -> float:
    """The distance that ``count`` draws from the distribution itself have from it on average."""
    return sum(math.sqrt(p * (1 - p) / count) for p in expected.values()) * math.sqrt(2 / math.pi) / 2


async def sample(
    model: Backend, count: int, *, proposal: Backend | None = None, seed: int = 0, **settings: Any
) -> list[Result]:
    """Results of so many runs of ETS."""
    ets = ETS(model, Valued(), proposal, kl_coef=KL_COEF, max_tokens=MAX_TOKENS, **settings)
    results = await ets.complete_many(["q"] * count, seed=seed, concurrency=1)
    failures = [result for result in results if not isinstance(result, Result)]
    if failures:
        raise failures[0]
    return [result for result in results if isinstance(result, Result)]


def texts(results: Sequence[Result]) -> Counter[str]:
    return Counter(result.text for result in results)
