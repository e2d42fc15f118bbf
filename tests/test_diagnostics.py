"""What the importance weights say about a proposal, against a reference implementation and known distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from arviz_stats.base import array_stats
from hypothesis import given
from hypothesis import strategies as st

from ets_agent.diagnostics import MIN_PARETO_DRAWS, check_proposal, pareto_k


@pytest.mark.parametrize("draws", [25, 50, 100, 225, 400])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_pareto_k_is_that_of_the_reference_implementation(draws: int, spread: float) -> None:
    weights = np.random.default_rng(draws).normal(0, spread, draws)
    _, expected = array_stats.psislw(-weights)
    assert pareto_k(weights) == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_pareto_k_finds_the_shape_of_a_known_tail(shape: float) -> None:
    uniform = np.random.default_rng(0).random(20_000)
    found = pareto_k(np.log((uniform**-shape - 1) / shape + 1))
    assert found == pytest.approx(shape, abs=0.12)


def test_pareto_k_needs_draws_and_a_tail() -> None:
    weights = np.random.default_rng(0).normal(size=MIN_PARETO_DRAWS)
    assert pareto_k(weights[:-1]) is None
    assert pareto_k(weights) is not None
    assert pareto_k(np.zeros(100)) is None, "equal weights have no tail"
    assert pareto_k(np.array([0.0] * 98 + [5.0, 6.0])) is None


@given(st.lists(st.one_of(st.floats(-800, 800), st.just(-math.inf)), min_size=1, max_size=80))
def test_any_weights_have_a_verdict_or_none(log_ratios: list[float]) -> None:
    check = check_proposal(np.array(log_ratios))
    assert check.draws == len(log_ratios)
    assert 0 <= check.ess <= check.draws + 1e-9
    assert check.pareto_k is None or math.isfinite(check.pareto_k)
    assert check.verdict is None or str(check.draws) in check.verdict


def test_verdicts_are_plain_words() -> None:
    far = np.array([0.0, *[-9.0] * 22, -2.0])
    assert check_proposal(far).verdict == "proposal too far from the reference: ESS 1.3 of 24"
    impossible = np.full(3, -math.inf)
    assert check_proposal(impossible).verdict == "proposal outside of the reference: all 3 rollouts impossible"
    heavy = np.log(np.random.default_rng(2).pareto(1.2, 400) + 1)
    verdict = check_proposal(heavy).verdict
    assert verdict is not None
    assert verdict.startswith("proposal lighter-tailed than the reference: Pareto k 0.71, ESS 74.3")
    assert check_proposal(np.zeros(32)).verdict is None
    assert check_proposal(1e-6 * np.random.default_rng(0).normal(size=64)).verdict is None, "rounding is no distance"
    assert check_proposal(np.zeros(1)).verdict is None
