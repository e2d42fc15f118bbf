"""Is the proposal near enough to the reference? Effective sample size and tail shape of importance weights.

Pure numpy; nothing here takes part in the sampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ets_agent.energy import Floats, effective_sample_size, self_normalized

MIN_PARETO_DRAWS = 25
"""Fewer draws have no tail to fit."""

_LEAST_SHARE = 0.1
"""An effective sample size below this share of the draws is a warning."""

_HEAVY_TAIL = 0.7
"""Above this Pareto k, averages of importance weights do not settle at any number of draws that can be had."""


@dataclass(frozen=True, slots=True)
class ProposalCheck:
    """What the importance weights of one step say about the proposal.

    Attributes:
        draws: Rollouts looked at.
        ess: Effective sample size of their importance weights ρ, 1 to ``draws``; 0 where all are 0.
        pareto_k: Shape of their upper tail, None where there are too few draws or no tail.
        verdict: What is wrong, or None.
    """

    draws: int
    ess: float
    pareto_k: float | None
    verdict: str | None


def check_proposal(log_ratios: Floats) -> ProposalCheck:
    """Judge the proposal by the log importance weights log ρ (nats) of all rollouts of a step, shape (draws,).

    E[ρ] = 1 for every candidate, so the draws of all candidates are pooled.
    """
    draws = len(log_ratios)
    if np.isneginf(log_ratios).all():
        return ProposalCheck(draws, 0.0, None, f"proposal outside of the reference: all {draws} rollouts impossible")
    ess = effective_sample_size(self_normalized(log_ratios))
    k = pareto_k(log_ratios)
    verdict = None
    if ess < max(1.5, _LEAST_SHARE * draws) and draws > 1:
        verdict = f"proposal too far from the reference: ESS {ess:.1f} of {draws}"
    elif k is not None and k > _HEAVY_TAIL and ess < draws / 2:
        verdict = f"proposal lighter-tailed than the reference: Pareto k {k:.2f}, ESS {ess:.1f} of {draws}"
    return ProposalCheck(draws, ess, k, verdict)


def pareto_k(log_weights: Floats) -> float | None:
    """Return the shape k of a generalized Pareto distribution fitted to the largest weights, as in PSIS.

    Moments of order up to 1 / k exist; above 0.7 importance sampling is not to be relied on (A. Vehtari, D. Simpson, A.
    Gelman, Y. Yao and J. Gabry, "Pareto smoothed importance sampling", JMLR 25, 2024). The fit is that of J. Zhang and
    M. A. Stephens (Technometrics 51, 2009), drawn towards 0.5 by the weight of ten draws.

    Returns:
        None for fewer than `MIN_PARETO_DRAWS` draws, or fewer than five that exceed the rest.
    """
    draws = len(log_weights)
    if draws < MIN_PARETO_DRAWS:
        return None
    tail = math.ceil(min(0.2 * draws, 3 * math.sqrt(draws)))
    ordered = np.sort(log_weights) - np.max(log_weights)
    cutoff = max(ordered[-tail - 1], math.log(np.finfo(np.float64).tiny))
    excesses = np.exp(ordered[ordered > cutoff]) - math.exp(cutoff)
    if len(excesses) < 5 or excesses[0] <= 0:
        return None
    return _fitted_shape(excesses)


def _fitted_shape(excesses: Floats) -> float:
    """Return the posterior mean of the shape, for sorted excesses above 0."""
    count = len(excesses)
    grid = np.arange(1, 30 + int(math.sqrt(count)) + 1)
    quartile = excesses[int(count / 4 + 0.5) - 1]
    slopes = (1 - np.sqrt(len(grid) / (grid - 0.5))) / (3 * quartile) + 1 / excesses[-1]
    shapes = np.log1p(-slopes[:, None] * excesses).mean(axis=1)
    likelihoods = count * (np.log(-slopes / shapes) - shapes - 1)
    slope = float(slopes @ self_normalized(likelihoods))
    shape = float(np.log1p(-slope * excesses).mean())
    return (count * shape + 10 * 0.5) / (count + 10)
