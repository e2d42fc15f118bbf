"""The mathematics of one ETS step: log-space energies, self-normalised weights, selection, effective sample size.

Pure numpy: no I/O, no model, no asyncio. Formulas: Algorithms 1 and 2 of arXiv 2601.21484, in log space throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Fallback = Literal["equal_rewards", "zero_energies", "no_verdict"]
"""Why weights are uniform: all rewards are equal; every energy is zero; no rollout has a verdict."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Energies and weights of M candidates.

    Attributes:
        log_energies: log Ê (nats), shape (M,); minus infinity for a candidate without weight. For λ = 0 they are the
            logs of the share of the largest reward, which is all that is left of them in the limit.
        weights: Self-normalised weights, shape (M,); they sum to 1.
        shares: What each rollout contributes to its candidate's weight, shape (M, K); rows sum to the weights.
        fallback: Why the weights are uniform, where they had to be.
    """

    log_energies: Floats
    weights: Floats
    shares: Floats
    fallback: Fallback | None = None

    @property
    def ess(self) -> float:
        """Effective sample size of the weights."""
        return effective_sample_size(self.weights)


def estimate(rewards: Floats, *, kl_coef: float, log_ratios: Floats | None = None) -> Estimate:
    """Estimate each candidate's energy E[exp(r / λ)] from its rollouts and weigh the candidates.

    log Ê_m = logsumexp_k(log ρ_mk + r_mk / λ) - log K_m over the K_m rollouts that have a verdict. A finished candidate
    is one rollout: its reward gives the energy exactly. For λ = 0 the exact limit: only rollouts with the largest
    reward count, in proportion to their importance weights.

    Args:
        rewards: Shape (M, K); NaN where there is no verdict or no rollout, minus infinity allowed.
        kl_coef: λ ≥ 0.
        log_ratios: log ρ (nats), shape (M, K), where the rollouts come from a proposal; minus infinity allowed.

    Raises:
        ValueError: Something is out of range; that is the caller's mistake.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    if rewards.ndim != 2 or 0 in rewards.shape:
        raise ValueError(f"rewards must have shape (M, K) with M, K >= 1, not {rewards.shape}")
    if not (kl_coef >= 0 and np.isfinite(kl_coef)):
        raise ValueError(f"kl_coef must be finite and at least 0, not {kl_coef}")
    if np.isposinf(rewards).any():
        raise ValueError("a reward is plus infinity; allowed are finite values and minus infinity")
    judged = ~np.isnan(rewards)
    ratios = np.zeros_like(rewards) if log_ratios is None else np.asarray(log_ratios, dtype=np.float64)
    if ratios.shape != rewards.shape:
        raise ValueError(f"log_ratios have shape {ratios.shape}, rewards {rewards.shape}")
    if (np.isnan(ratios) | np.isposinf(ratios))[judged].any():
        raise ValueError("a log-ratio is NaN or plus infinity; allowed are finite values and minus infinity")

    counts = judged.sum(axis=1)
    if not counts.any():
        return _uniform(np.zeros(len(rewards)), np.ones_like(judged), "no_verdict")
    top, bottom = rewards[judged].max(), rewards[judged].min()
    if top == bottom:
        if np.isneginf(top):
            return _uniform(np.full(len(rewards), -np.inf), judged, "zero_energies")
        # Whatever the ratios are, E[ρ] = 1: the energies are known to be equal, and noise in ρ must not choose.
        return _uniform(np.where(counts > 0, _scale(top, kl_coef), -np.inf), judged, "equal_rewards")

    supported = judged & ~np.isneginf(ratios) & ~np.isneginf(rewards)
    if not supported.any():
        return _uniform(np.full(len(rewards), -np.inf), judged, "zero_energies")
    # Subtracting the largest reward before dividing keeps every exponent at or below 0, for any λ.
    largest = rewards[supported].max()
    exponents = np.full_like(rewards, -np.inf)
    with np.errstate(over="ignore"):  # Differences beyond the float range are -inf, which is their right weight: 0.
        gaps = rewards[supported] - largest
        exponents[supported] = ratios[supported] + (
            np.where(gaps == 0, 0.0, -np.inf) if kl_coef == 0 else gaps / kl_coef
        )
    exponents -= np.log(np.maximum(counts, 1))[:, None]
    shifted = log_sum_exp(exponents, axis=1)
    shares = self_normalised(exponents.ravel()).reshape(rewards.shape)
    alive = ~np.isneginf(shifted)
    log_energies = np.full_like(shifted, -np.inf)
    log_energies[alive] = shifted[alive] + _scale(largest, kl_coef)
    return Estimate(log_energies, shares.sum(axis=1), shares)


def importance_log_ratios(reference: Floats, proposal: Floats) -> Floats:
    """Return log ρ = log p_ref - log p_small (nats) of rollouts drawn from the proposal, elementwise.

    Both arguments are log-probabilities of the rollouts' own tokens, given the candidate's state, under the sampled
    distributions (temperature and truncation included). Minus infinity under the reference gives ρ = 0.

    Raises:
        ValueError: The proposal gives zero probability to something it drew.
    """
    reference, proposal = np.asarray(reference, dtype=np.float64), np.asarray(proposal, dtype=np.float64)
    if not np.isfinite(proposal).all():
        raise ValueError("the proposal's log-probability of its own draw is not finite")
    return reference - proposal


def self_normalised(log_weights: Floats) -> Floats:
    """Return exp(log_weights) / Σ exp(log_weights), uniform where all are minus infinity."""
    total = log_sum_exp(log_weights, axis=0)
    if np.isneginf(total):
        return np.full(len(log_weights), 1 / len(log_weights))
    weights = np.exp(log_weights - total)
    normalised: Floats = weights / weights.sum()
    return normalised


def log_sum_exp(values: Floats, *, axis: int) -> Floats:
    """Return log Σ exp(values) along an axis; minus infinity where there is nothing else."""
    largest = np.max(values, axis=axis, keepdims=True)
    largest = np.where(np.isneginf(largest), 0.0, largest)
    with np.errstate(divide="ignore"):
        total: Floats = np.log(np.exp(values - largest).sum(axis=axis)) + np.squeeze(largest, axis=axis)
    return total


def effective_sample_size(weights: Floats) -> float:
    """Return 1 / Σ w², between 1 and the number of weights, for weights that sum to 1 (Kong 1992)."""
    return float(1.0 / np.square(weights).sum())


def select(weights: Floats, rng: np.random.Generator) -> int:
    """Draw an index with these probabilities; one of weight 0 is never drawn."""
    bounds = np.cumsum(weights)
    # ``random`` is below 1 by at least 2**-53, so the product stays below the last bound.
    return int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))


def _uniform(log_energies: Floats, used: NDArray[np.bool_], reason: Fallback) -> Estimate:
    """Weigh all candidates alike that have any rollout in use, and a candidate's rollouts alike."""
    counts = used.sum(axis=1)
    weights = (counts > 0) / (counts > 0).sum()
    shares = used * (weights / np.maximum(counts, 1))[:, None]
    return Estimate(log_energies, weights, shares, reason)


def _scale(reward: float, kl_coef: float) -> float:
    """Return reward / λ, which a tiny λ may take to infinity; 0 in the limit λ = 0, where only shares are left."""
    if kl_coef == 0:
        return 0.0
    with np.errstate(over="ignore"):
        return float(np.float64(reward) / np.float64(kl_coef))
