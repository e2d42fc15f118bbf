"""Who goes on from where: counts, weights, and nothing out of nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ets_agent import chains, energy

weight_lists = st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(lambda weights: sum(weights) > 1e-6)


@given(weight_lists, st.integers(1, 30), st.integers(0, 2**32))
def test_systematic_resampling_rounds_up_or_down(weights: list[float], count: int, seed: int) -> None:
    normalized = np.array(weights) / sum(weights)
    found = Counter(chains.systematic(normalized, count, np.random.default_rng(seed)))
    assert found.total() == count
    for index, weight in enumerate(normalized):
        assert np.floor(count * weight - 1e-9) <= found[index] <= np.ceil(count * weight + 1e-9)


def test_systematic_resampling_is_unbiased() -> None:
    weights, rng, rounds = np.array([0.05, 0.0, 0.61, 0.34]), np.random.default_rng(0), 20_000
    found = Counter(index for _ in range(rounds) for index in chains.systematic(weights, 3, rng))
    assert found[1] == 0
    assert [found[index] / rounds for index in range(4)] == pytest.approx(3 * weights, abs=0.02)


def estimate(log_energies: list[float], kl_coef: float = 1.0) -> energy.Estimate:
    return energy.estimate(np.array(log_energies)[:, None] * kl_coef, kl_coef=kl_coef)


def test_one_chain_is_ets() -> None:
    found = estimate([1.0, 2.0, 0.5])
    owners = np.zeros(3, dtype=np.intp)
    assert chains.pool(found, owners, np.array([7.0])) is found
    move = chains.advance(found, found, owners, np.random.default_rng(3), chains=1, threshold=1.0)
    assert move.chosen == [energy.select(found.weights, np.random.default_rng(3))]
    assert (move.resampled, move.weights.tolist()) == (False, [1.0])


def test_candidates_of_several_chains_are_weighed_by_their_chains_factors() -> None:
    """Factor · Ê / M: chain 0 has two candidates, chain 1 has one."""
    found = estimate([0.0, np.log(3), np.log(5)])
    pooled = chains.pool(found, np.array([0, 0, 1]), np.log([2.0, 0.5]))
    expected = np.array([2 * 1 / 2, 2 * 3 / 2, 0.5 * 5])
    assert pooled.weights == pytest.approx(expected / expected.sum())
    assert pooled.shares.sum(axis=1) == pytest.approx(pooled.weights)
    assert pooled.log_energy_errors == pytest.approx(found.log_energy_errors)


def test_factors_carry_what_a_choice_leaves_out() -> None:
    """Without resampling a chain's weight becomes W · mean Ê / Ê(parent), and its factor divides by the chosen Ê."""
    found = estimate([0.0, np.log(3), np.log(5), np.log(7)])
    owners = np.array([0, 0, 1, 1])
    pooled = chains.pool(found, owners, np.log([2.0, 0.5]))
    move = chains.advance(found, pooled, owners, np.random.default_rng(0), chains=2, threshold=0.0)
    assert not move.resampled
    masses = np.array([2 * (1 + 3) / 2, 0.5 * (5 + 7) / 2])
    assert move.weights == pytest.approx(masses / masses.sum())
    chosen = np.exp([0.0, np.log(3), np.log(5), np.log(7)])[move.chosen]
    factors = np.exp(move.log_factors)
    assert factors[0] / factors[1] == pytest.approx((masses[0] / chosen[0]) / (masses[1] / chosen[1]))
    again = chains.advance(found, pooled, owners, np.random.default_rng(0), chains=2, threshold=1.0)
    assert again.resampled
    assert again.weights.tolist() == [0.5, 0.5]
    ratio = np.exp(again.log_factors[0] - again.log_factors[1])
    values = np.array([1, 3, 5, 7])
    assert ratio == pytest.approx(values[again.chosen[1]] / values[again.chosen[0]])


@pytest.mark.parametrize("kl_coef", [1.0, 0.0, 1e-300])
def test_a_chain_without_weight_is_replaced(kl_coef: float) -> None:
    found = energy.estimate(np.array([[0.0], [-np.inf], [-np.inf]]), kl_coef=kl_coef)
    owners = np.array([0, 1, 1])
    pooled = chains.pool(found, owners, np.zeros(2))
    move = chains.advance(found, pooled, owners, np.random.default_rng(0), chains=2, threshold=0.0)
    assert move.chosen == [0, 0]
    assert np.isfinite(move.log_factors).all()
