"""How sure a search was of its answer: the share of weight behind it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from ets_agent.results import Result, StepTrace
from rewards import canonical


def confidence(result: Result) -> float | None:
    """Return the share of weight behind a result's answer, 0 to 1, averaged over the steps.

    It is that of all complete responses by which candidates were judged and that end in this answer (the same text,
    where no answer is read), by their weights. How an answer is written does not matter as far as `rewards.canonical`
    sees through it. It is no probability of being right.

    Returns:
        None where nothing was weighed.
    """
    wanted = result.text if result.answer is None else canonical(result.answer)

    @cache  # Of hundreds of rollouts, most end in one of a few answers.
    def counts(text: str, answer: str | None) -> bool:
        return text == wanted if result.answer is None else answer is not None and canonical(answer) == wanted

    shares = [_share(step, counts) for step in result.steps if any(step.weights)]
    return min(1.0, sum(shares) / len(shares)) if shares else None


def _share(step: StepTrace, counts: Callable[[str, str | None], bool]) -> float:
    return sum(
        weight * rollout.share
        for weight, rollouts in zip(step.weights, step.rollouts, strict=True)
        for rollout in rollouts
        if counts(rollout.text, rollout.answer)
    )
