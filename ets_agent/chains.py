"""Several chains as particles: candidates of all chains weighed together, and who goes on from where.

Pure numpy. Each chain carries a log-factor, the log of its weight over the energy of the state it stands on. A
candidate of chain n then has weight factor_n · Ê_m / M_n, which makes the chains properly weighted for the optimal
policy (C. A. Naesseth, F. Lindsten and T. B. Schön, "Nested sequential Monte Carlo methods", ICML 2015). With one chain
all of this cancels, and what is left is ETS.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ets_agent.energy import Estimate, Floats, effective_sample_size, select

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Move:
    """Where N chains go in one step.

    Attributes:
        chosen: The candidate that each chain goes on from, shape (N,).
        log_factors: The chains' new log-factors, shape (N,).
        weights: The chains' new self-normalized weights, shape (N,).
        resampled: Whether the chains were resampled from all candidates; otherwise each drew one of its own.
    """

    chosen: list[int]
    log_factors: Floats
    weights: Floats
    resampled: bool


def pool(estimate: Estimate, owners: Indices, log_factors: Floats) -> Estimate:
    """Weigh the candidates of all chains together.

    Args:
        estimate: Their energies, weighed without regard to the chains.
        owners: Number of the chain that each candidate continues, shape (candidates,).
        log_factors: Of the chains, shape (N,).
    """
    if len(log_factors) == 1:  # Its factor is common to all.
        return estimate
    counts = np.bincount(owners, minlength=len(log_factors))
    return estimate.reweighted((log_factors - np.log(counts))[owners])


def advance(
    estimate: Estimate, pooled: Estimate, owners: Indices, rng: np.random.Generator, *, chains: int, threshold: float
) -> Move:
    """Draw the candidates that the chains go on from.

    Each chain draws one of its own candidates and keeps its weight, unless the effective sample size of the chains
    falls under a share of their number or a chain has lost all weight: then all are drawn anew from all candidates.

    Args:
        estimate: The candidates' energies, weighed without regard to the chains.
        pooled: The same from `pool`.
        owners: Number of the chain that each candidate continues, shape (candidates,).
        rng: Randomness.
        chains: N.
        threshold: Share of N, 0 to 1.
    """
    masses: Floats = np.bincount(owners, pooled.weights, minlength=chains).astype(np.float64)
    resampled = bool(effective_sample_size(masses) < threshold * chains or masses.min() == 0)
    if resampled:
        chosen = systematic(pooled.weights, chains, rng)
        masses = np.full(chains, 1 / chains)
    else:
        chosen = []
        for chain in range(chains):
            (own,) = np.nonzero(owners == chain)
            chosen.append(int(own[select(pooled.weights[own], rng)]))
    return Move(chosen, np.log(masses) - np.log(estimate.weights[chosen]), masses, resampled)


def systematic(weights: Floats, count: int, rng: np.random.Generator) -> list[int]:
    """Draw so many indices by systematic resampling: each comes up count · weight times, rounded up or down.

    Unbiased, with less noise than independent draws (G. Kitagawa, JCGS 5, 1996). An index of weight 0 is never drawn.
    """
    bounds = np.cumsum(weights)
    points = (np.arange(count) + rng.random()) / count * bounds[-1]
    points = np.minimum(points, np.nextafter(bounds[-1], 0))
    return [int(index) for index in np.searchsorted(bounds, points, side="right")]
