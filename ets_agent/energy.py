"""The mathematics of one ETS step: log-space energies, self-normalized weights, selection, effective sample size.

Pure numpy: no I/O, no model, no asyncio. Formulas: Algorithms 1 and 2 of arXiv 2601.21484, in log space throughout.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

Fallback = Literal["equal_rewards", "zero_energies", "no_verdict"]
"""Why weights are uniform: all rewards are equal; every energy is zero; no rollout has a verdict."""

Estimator = Literal["unbiased", "truncated", "self_normalized"]
"""How importance weights ρ enter a candidate's energy; see `importance_log_weights`."""

_HOPELESS = 1e6
"""Larger doubts than this, in the unit of weights that sum to 1, make no difference."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Energies and weights of M candidates.

    Attributes:
        log_energies: log Ê (nats), shape (M,); minus infinity for a candidate without weight. For λ = 0 they are the
            logs of the share of the largest reward, which is all that is left of them in the limit.
        weights: Self-normalized weights, shape (M,); they sum to 1.
        shares: What each rollout contributes to its candidate's weight, shape (M, K); rows sum to the weights.
        errors: Standard error of each energy, in the unit of the weights, shape (M,). The variance of a candidate's
            rollouts is blended with that of all rollouts, which counts as one more of them: a few equal rewards are no
            proof that there is no other.
        doubts: What the errors would gain if one more rollout, of no candidate in particular, had the largest reward
            that is known to be possible, shape (M,). Zero where that reward was seen, huge where nothing is known.
        judged: Whether the candidate has a verdict at all, shape (M,).
        fallback: Why the weights are uniform, where they had to be.
    """

    log_energies: Floats
    weights: Floats
    shares: Floats
    errors: Floats
    doubts: Floats
    judged: NDArray[np.bool_]
    fallback: Fallback | None = None

    @property
    def ess(self) -> float:
        """Effective sample size of the weights."""
        return effective_sample_size(self.weights)

    @property
    def log_energy_errors(self) -> Floats:
        """Standard errors of the log-energies by the delta method, shape (M,); infinite where there is no weight."""
        with np.errstate(divide="ignore", invalid="ignore"):
            errors: Floats = np.where(self.weights > 0, self.errors / self.weights, np.inf)
        return errors

    def reweighted(self, log_factors: Floats) -> Estimate:
        """Return the same energies with each candidate's weight multiplied by a factor and normalized again.

        Args:
            log_factors: Finite, shape (M,).
        """
        with np.errstate(divide="ignore"):
            logs = np.log(self.weights) + log_factors
        weights = self_normalized(logs)
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.where(self.weights > 0, weights / self.weights, np.exp(log_factors - log_sum_exp(logs, axis=0)))
        return replace(
            self,
            weights=weights,
            shares=self.shares * scale[:, None],
            errors=self.errors * scale,
            doubts=self.doubts * scale,
        )


def estimate(
    rewards: Floats,
    *,
    kl_coef: float,
    log_ratios: Floats | None = None,
    estimator: Estimator = "unbiased",
    exact: NDArray[np.bool_] | None = None,
    ceiling: float | None = None,
) -> Estimate:
    """Estimate each candidate's energy E[exp(r / λ)] from its rollouts and weigh the candidates.

    log Ê_m = logsumexp_k(log w_mk + r_mk / λ) - log K_m over the K_m rollouts that have a verdict, with the importance
    weights w of `importance_log_weights`. A finished candidate is one rollout: its reward gives the energy exactly. For
    λ = 0 the exact limit: only rollouts with the largest reward count, in proportion to their importance weights.

    Args:
        rewards: Shape (M, K); NaN where there is no verdict or no rollout, minus infinity allowed.
        kl_coef: λ ≥ 0.
        log_ratios: log ρ (nats), shape (M, K), where the rollouts come from a proposal; minus infinity allowed.
        estimator: How ρ enters.
        exact: Candidates that are finished, shape (M,); their energies have no error.
        ceiling: The largest reward that is known to be possible, for `Estimate.doubts`; None where nothing is known.

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
        return _fall_back("no_verdict", judged, np.zeros(len(rewards)))
    log_weights = importance_log_weights(ratios, judged, estimator)
    supported = judged & ~np.isneginf(log_weights) & ~np.isneginf(rewards)
    if not supported.any():
        return _fall_back("zero_energies", judged, np.full(len(rewards), -np.inf))
    # Subtracting the largest reward before dividing keeps every exponent at or below 0, for any λ.
    largest = rewards[supported].max()
    exponents = np.full_like(rewards, -np.inf)
    with np.errstate(over="ignore"):  # Differences beyond the float range are -inf, which is their right weight: 0.
        gaps = rewards[supported] - largest
        exponents[supported] = log_weights[supported] + (
            np.where(gaps == 0, 0.0, -np.inf) if kl_coef == 0 else gaps / kl_coef
        )
    exponents -= np.log(np.maximum(counts, 1))[:, None]
    shifted = log_sum_exp(exponents, axis=1)
    alive = ~np.isneginf(shifted)
    log_energies = np.full_like(shifted, -np.inf)
    log_energies[alive] = shifted[alive] + _scale(largest, kl_coef)

    shares = self_normalized(exponents.ravel()).reshape(rewards.shape)
    weights = shares.sum(axis=1)
    noisy = judged if exact is None else judged & ~exact[:, None]
    drift = np.exp(log_weights) if estimator == "self_normalized" else np.ones_like(shares)
    errors = _standard_errors(shares * counts[:, None], weights, drift, noisy)
    equal = bool(rewards[judged].min() == rewards[judged].max())
    log_total = float(log_sum_exp(shifted, axis=0))
    imagined = largest if ceiling is None else max(largest, ceiling)
    doubts = _doubts(_log_excess(imagined - largest, kl_coef) - log_total, noisy.sum(axis=1))
    if equal and ceiling is None:  # One value shows no scale.
        doubts = np.where(noisy.any(axis=1), _HOPELESS, 0.0)
    found = Estimate(log_energies, weights, shares, errors, doubts, counts > 0)
    if equal:
        # Whatever the ratios are, E[ρ] = 1: the energies are known to be equal, and noise in ρ must not choose.
        return _fall_back("equal_rewards", judged, log_energies, found.log_energy_errors, doubts)
    return found


def importance_log_weights(log_ratios: Floats, used: NDArray[np.bool_], estimator: Estimator) -> Floats:
    """Return the log-weights w with which rollouts from a proposal enter their candidate's mean, shape (M, K).

    - ``unbiased``: w = ρ, the paper's estimator.
    - ``truncated``: w = min(ρ, √K_m) over K_m rollouts in use. The cap grows with the number of draws, so the estimate
      stays consistent, and its variance is bounded (E. L. Ionides, "Truncated importance sampling", JCGS 17, 2008,
      with the mean weight known to be 1).
    - ``self_normalized``: w = ρ / mean ρ, a ratio of means: consistent, with a bias of order 1 / K.

    Args:
        log_ratios: log ρ (nats), shape (M, K).
        used: The rollouts that count, shape (M, K).
        estimator: One of the above.

    Raises:
        ValueError: There is no such estimator.
    """
    log_counts = np.log(np.maximum(used.sum(axis=1, keepdims=True), 1))
    if estimator == "unbiased":
        return log_ratios
    if estimator == "truncated":
        capped: Floats = np.minimum(log_ratios, log_counts / 2)
        return capped
    if estimator == "self_normalized":
        totals = log_sum_exp(np.where(used, log_ratios, -np.inf), axis=1)[:, None]
        # A candidate none of whose rollouts is possible under the reference keeps its weights of zero.
        shifts: Floats = log_counts - np.where(np.isneginf(totals), 0.0, totals)
        return log_ratios + shifts
    raise ValueError(f"estimator is {estimator!r}; allowed: {', '.join(get_args(Estimator))}")


def log_normalizer(estimate: Estimate, source: Sequence[int]) -> tuple[float, float | None]:
    """Estimate log E_ref[exp(r / λ)], the log normalizer of the optimal policy, from one step's candidates.

    It is the log of the mean of the candidates' energies, which is unbiased before the logarithm where each of them is.

    Args:
        estimate: Energies of candidates that were all drawn from p_ref, given the same state.
        source: Per candidate the number of its rollouts' set; candidates of one number share rollouts.

    Returns:
        The estimate (nats) and its standard error, None where it cannot be told, as from a single candidate.
    """
    count = int(estimate.judged.sum())
    total = log_sum_exp(estimate.log_energies, axis=0)
    if count == 0:
        return math.nan, None
    value = float(total - math.log(count))
    if count == 1 or not math.isfinite(total):
        return value, None
    ratios = count * self_normalized(estimate.log_energies)[estimate.judged]
    variance = float(ratios.var(ddof=1)) / count
    # Candidates that share rollouts share their error too, which the spread of the energies does not show.
    shared = {place: copies for place, copies in Counter(source).items() if copies > 1}
    for place, copies in shared.items():
        variance += (copies * copies - copies) * float(estimate.errors[source.index(place)]) ** 2
    return value, math.sqrt(variance) if math.isfinite(variance) else None


def selection_error(estimate: Estimate, source: Sequence[int]) -> float:
    """Return how far the noise of the rollouts moves the selection, between 0 and 1.

    It is the expected total-variation distance between the weights and those that exact energies would give, to first
    order in the standard errors and doubts, with candidates of one ``source`` moving together. Without any usable
    verdict it is 1.
    """
    if estimate.fallback in ("zero_energies", "no_verdict"):
        return 1.0
    weights = np.bincount(source, estimate.weights)
    # Equal rewards make equal energies, whatever noise there is in the ratios.
    errors = np.bincount(source, 0 * estimate.weights if estimate.fallback else estimate.errors)
    squared = np.square(errors) + np.square(np.minimum(np.bincount(source, estimate.doubts), _HOPELESS))
    spread = np.square(1 - weights) * squared + np.square(weights) * (squared.sum() - squared)
    return min(1.0, 0.5 * math.sqrt(2 / math.pi) * float(np.sqrt(spread).sum()))


def self_normalized(log_weights: Floats) -> Floats:
    """Return exp(log_weights) / Σ exp(log_weights), uniform where all are minus infinity."""
    total = log_sum_exp(log_weights, axis=0)
    if np.isneginf(total):
        return np.full(len(log_weights), 1 / len(log_weights))
    weights = np.exp(log_weights - total)
    normalized: Floats = weights / weights.sum()
    return normalized


def log_sum_exp(values: Floats, *, axis: int) -> Floats:
    """Return log Σ exp(values) along an axis; infinite where a value is plus infinity, or all are minus infinity."""
    largest = np.max(values, axis=axis, keepdims=True)
    largest = np.where(np.isinf(largest), 0.0, largest)
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


def _fall_back(
    reason: Fallback,
    judged: NDArray[np.bool_],
    log_energies: Floats,
    log_energy_errors: Floats | float = np.inf,
    doubts: Floats | float = _HOPELESS,
) -> Estimate:
    """Weigh all candidates alike that have a verdict, or all where none has, and a candidate's rollouts alike."""
    used = judged if judged.any() else np.ones_like(judged)
    counts = used.sum(axis=1)
    weights = (counts > 0) / (counts > 0).sum()
    shares = used * (weights / np.maximum(counts, 1))[:, None]
    errors = np.where(weights > 0, log_energy_errors, 0.0) * np.where(weights > 0, weights, 1.0)
    return Estimate(
        log_energies, weights, shares, errors, np.broadcast_to(doubts, weights.shape), np.any(judged, axis=1), reason
    )


def _standard_errors(values: Floats, means: Floats, drift: Floats, noisy: NDArray[np.bool_]) -> Floats:
    """Return the standard errors of row means, each row's variance blended with that of all rows.

    Args:
        values: One value per rollout, shape (M, K); ``means`` are those of the rows.
        means: Shape (M,).
        drift: By how much of its row's mean each value moves with that mean: 1, or the normalized weight in a ratio.
        noisy: The values that count.
    """
    counts = noisy.sum(axis=1)
    total = counts.sum()
    if total == 0:
        return np.zeros(len(means))
    within = np.where(noisy, np.square(values - drift * means[:, None]), 0.0).sum(axis=1)
    center = values[noisy].sum() / total
    overall = np.square(values - drift * center)[noisy].sum() / max(1, total - 1)
    variance = (within + overall) / np.maximum(counts, 1)
    return np.where(counts > 0, np.sqrt(variance / np.maximum(counts, 1)), 0.0)


def _doubts(log_value: float, counts: NDArray[np.intp]) -> Floats:
    """Return by how much one rollout of this value (log, in the unit of the weights) would raise each standard error.

    Among n + 1 rollouts it adds value² / (n + 1) to their variance, which is blended into each row's as one of K.
    """
    value = math.exp(min(log_value, 300.0)) if log_value > -math.inf else 0.0
    return np.where(counts > 0, value / math.sqrt(counts.sum() + 1) / np.maximum(counts, 1), 0.0)


def _log_excess(gap: float, kl_coef: float) -> float:
    """Return the log of what exp(r / λ) gains, as a share of itself, when r grows by ``gap``."""
    if gap <= 0:
        return -math.inf
    exponent = math.inf if kl_coef == 0 else gap / kl_coef
    return exponent if exponent > 40 else math.log(math.expm1(exponent))


def _scale(reward: float, kl_coef: float) -> float:
    """Return reward / λ, which a tiny λ may take to infinity; 0 in the limit λ = 0, where only shares are left."""
    if kl_coef == 0:
        return 0.0
    with np.errstate(over="ignore"):
        return float(np.float64(reward) / np.float64(kl_coef))
