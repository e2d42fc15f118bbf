"""The mathematics of a step against direct computation in high precision, and its invariances."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ets_agent import energy

MINUS_INFINITY = -math.inf

rewards_of_a_rollout = st.one_of(
    st.just(math.nan), st.just(MINUS_INFINITY), st.floats(-5, 5), st.sampled_from([0.0, 1.0])
)
log_ratio = st.one_of(st.just(MINUS_INFINITY), st.floats(-30, 30))
kl_coefs = st.one_of(st.just(0.0), st.floats(1e-2, 10))


@st.composite
def steps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and log-ratios of M candidates with K rollouts."""
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    size = shape[0] * shape[1]
    rewards = draw(st.lists(rewards_of_a_rollout, min_size=size, max_size=size))
    ratios = draw(st.lists(log_ratio, min_size=size, max_size=size))
    return np.array(rewards).reshape(shape), np.array(ratios).reshape(shape)


def direct(rewards: np.ndarray, ratios: np.ndarray, kl_coef: float) -> list[float] | None:
    """The paper's formulas with 400 digits and no logarithm; None where every energy is zero."""
    with mpmath.workdps(400):
        judged = [
            [(r, q) for r, q in zip(*row, strict=True) if not math.isnan(r)]
            for row in zip(rewards, ratios, strict=True)
        ]
        if kl_coef == 0:
            supported = [r for row in judged for r, q in row if q > MINUS_INFINITY and r > MINUS_INFINITY]
            best = max(supported, default=None)
            energies = [
                sum((mpmath.exp(q) for r, q in row if r == best), mpmath.mpf(0)) / max(1, len(row)) for row in judged
            ]
        else:
            energies = [
                sum(
                    (mpmath.exp(mpmath.mpf(r) / mpmath.mpf(kl_coef) + q) for r, q in row if r > MINUS_INFINITY),
                    mpmath.mpf(0),
                )
                / max(1, len(row))
                for row in judged
            ]
        total = sum(energies)
        return [float(e / total) for e in energies] if total > 0 else None


def all_equal(rewards: np.ndarray) -> bool:
    judged = rewards[~np.isnan(rewards)]
    return len(judged) > 0 and bool((judged == judged[0]).all())


@given(steps(), kl_coefs)
def test_weights_agree_with_direct_computation(step: tuple[np.ndarray, np.ndarray], kl_coef: float) -> None:
    rewards, ratios = step
    estimate = energy.estimate(rewards, kl_coef=kl_coef, log_ratios=ratios)
    expected = direct(rewards, ratios, kl_coef)
    assert estimate.weights.sum() == pytest.approx(1)
    if estimate.fallback is None:
        assert expected is not None
        np.testing.assert_allclose(estimate.weights, expected, atol=1e-9)
    else:
        assert len(set(estimate.weights[estimate.weights > 0])) == 1
        if estimate.fallback == "no_verdict":
            assert np.isnan(rewards).all()
        elif estimate.fallback == "equal_rewards":
            assert all_equal(rewards)
        else:
            assert expected is None


@given(steps(), st.floats(1e-2, 10))
def test_log_energies_agree_with_direct_computation(step: tuple[np.ndarray, np.ndarray], kl_coef: float) -> None:
    rewards, ratios = step
    estimate = energy.estimate(rewards, kl_coef=kl_coef, log_ratios=ratios)
    if estimate.fallback is not None:
        return
    with mpmath.workdps(60):
        for row, line, value in zip(rewards, ratios, estimate.log_energies, strict=True):
            judged = [(r, q) for r, q in zip(row, line, strict=True) if not math.isnan(r)]
            total = sum((mpmath.exp(r / kl_coef + q) for r, q in judged if r > MINUS_INFINITY), mpmath.mpf(0))
            if total == 0:
                assert value == MINUS_INFINITY
            else:
                assert value == pytest.approx(float(mpmath.log(total / len(judged))), abs=1e-8)


@given(steps(), kl_coefs, st.floats(-100, 100))
def test_shifting_all_rewards_changes_no_weight(
    step: tuple[np.ndarray, np.ndarray], kl_coef: float, shift: float
) -> None:
    rewards = np.round(step[0], 3)  # So that rounding in the shift cannot merge or split what is equal.
    shift = round(shift)
    weights = energy.estimate(rewards, kl_coef=kl_coef, log_ratios=step[1]).weights
    moved = energy.estimate(np.round(rewards + shift, 3), kl_coef=kl_coef, log_ratios=step[1]).weights
    np.testing.assert_allclose(moved, weights, atol=1e-6)


@given(steps(), kl_coefs, st.randoms(use_true_random=False))
def test_permuting_candidates_or_rollouts_only_permutes(
    step: tuple[np.ndarray, np.ndarray], kl_coef: float, random: object
) -> None:
    rewards, ratios = step
    rows, columns = list(range(rewards.shape[0])), list(range(rewards.shape[1]))
    random.shuffle(rows)  # type: ignore[attr-defined]
    random.shuffle(columns)  # type: ignore[attr-defined]
    plain = energy.estimate(rewards, kl_coef=kl_coef, log_ratios=ratios)
    mixed = energy.estimate(rewards[np.ix_(rows, columns)], kl_coef=kl_coef, log_ratios=ratios[np.ix_(rows, columns)])
    np.testing.assert_allclose(mixed.weights, plain.weights[rows], atol=1e-9)
    assert mixed.fallback == plain.fallback


@given(steps(), st.floats(-300, 300))
def test_no_kl_coef_overflows(step: tuple[np.ndarray, np.ndarray], exponent: float) -> None:
    rewards, ratios = step
    for kl_coef in (10.0**exponent, 1e-300, 1e300, 5e-324):
        estimate = energy.estimate(rewards, kl_coef=kl_coef, log_ratios=ratios)
        assert np.isfinite(estimate.weights).all()
        assert estimate.weights.sum() == pytest.approx(1)
        assert not np.isnan(estimate.log_energies).any()
        assert 1 - 1e-9 <= estimate.ess <= len(rewards) + 1e-9


@given(steps())
def test_zero_is_the_limit_of_small_kl_coefs(step: tuple[np.ndarray, np.ndarray]) -> None:
    rewards = np.round(step[0], 2)  # Gaps of at least 0.01, so that 1e-6 is small.
    limit = energy.estimate(rewards, kl_coef=0, log_ratios=step[1]).weights
    np.testing.assert_allclose(energy.estimate(rewards, kl_coef=1e-6, log_ratios=step[1]).weights, limit, atol=1e-9)


def test_best_of_n_is_one_step_at_zero() -> None:
    estimate = energy.estimate(np.array([[0.2], [0.9], [0.9], [0.1]]), kl_coef=0)
    assert estimate.weights.tolist() == [0, 0.5, 0.5, 0]
    assert estimate.ess == 2


def test_huge_rewards_overflow_nothing() -> None:
    rewards = np.array([[1e308], [-1e308], [0.0]])
    for kl_coef in (0, 1e-300, 1.0):
        assert energy.estimate(rewards, kl_coef=kl_coef).weights.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("rewards", "reason", "weights"),
    [
        ([[1, 1], [1, 1]], "equal_rewards", [0.5, 0.5]),
        ([[0, 0], [0, 0]], "equal_rewards", [0.5, 0.5]),
        ([[-math.inf], [-math.inf]], "zero_energies", [0.5, 0.5]),
        ([[math.nan], [math.nan]], "no_verdict", [0.5, 0.5]),
        ([[math.nan], [2.0]], "equal_rewards", [0.0, 1.0]),
        ([[math.nan, 1], [2.0, 2.0]], None, [0.0, 1.0]),
    ],
)
def test_fallbacks_are_uniform_and_named(
    rewards: list[list[float]], reason: str | None, weights: Sequence[float]
) -> None:
    estimate = energy.estimate(np.array(rewards), kl_coef=0.01)
    assert estimate.fallback == reason
    assert estimate.weights == pytest.approx(weights, abs=1e-12)


def test_no_verdict_is_not_zero() -> None:
    half = energy.estimate(np.array([[1, math.nan], [1, 0]]), kl_coef=0.1)
    assert half.weights[0] == pytest.approx(2 / 3, abs=1e-4)


def test_equal_rewards_ignore_the_noise_of_importance_weights() -> None:
    ratios = np.array([[5.0, 3.0], [-5.0, -3.0]])
    assert energy.estimate(np.ones((2, 2)), kl_coef=0.1, log_ratios=ratios).weights.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("rewards", "kl_coef", "ratios"),
    [
        (np.zeros(3), 1, None),
        (np.zeros((0, 2)), 1, None),
        (np.array([[math.inf]]), 1, None),
        (np.zeros((1, 1)), -1, None),
        (np.zeros((1, 1)), math.nan, None),
        (np.zeros((1, 1)), math.inf, None),
        (np.zeros((1, 1)), 1, np.zeros((1, 2))),
        (np.zeros((1, 1)), 1, np.array([[math.nan]])),
        (np.zeros((1, 1)), 1, np.array([[math.inf]])),
    ],
)
def test_nonsense_is_refused(rewards: np.ndarray, kl_coef: float, ratios: np.ndarray | None) -> None:
    with pytest.raises(ValueError, match=r"reward|kl_coef|log-ratio|log_ratios"):
        energy.estimate(rewards, kl_coef=kl_coef, log_ratios=ratios)


def test_selection_follows_the_weights() -> None:
    rng = np.random.default_rng(0)
    weights = np.array([0.0, 0.5, 0.2, 0.0, 0.3, 0.0])
    count = 50_000
    found = np.bincount([energy.select(weights, rng) for _ in range(count)], minlength=6)
    assert (found[weights == 0] == 0).all()
    expected = count * weights[weights > 0]
    assert ((found[weights > 0] - expected) ** 2 / expected).sum() < 13.8  # 2 degrees of freedom, once in a thousand.


class Edge(np.random.Generator):
    """Always draws the same number."""

    def __init__(self, value: float) -> None:
        super().__init__(np.random.PCG64())
        self.value = value

    def random(self, *args: object, **kwargs: object) -> float:  # type: ignore[override]
        return self.value


def test_selection_reaches_no_candidate_without_weight_at_the_edges() -> None:
    for count in range(1, 200):
        weights = np.array([0.0, *[1 / count] * count, 0.0])
        assert energy.select(weights, Edge(0.0)) == 1
        assert energy.select(weights, Edge(1 - 2**-53)) == count


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=20))
def test_effective_sample_size_is_between_one_and_all(values: list[float]) -> None:
    weights = np.array(values) / sum(values)
    assert 1 - 1e-9 <= energy.effective_sample_size(weights) <= len(values) + 1e-9
    uniform = np.full(len(values), 1 / len(values))
    assert energy.effective_sample_size(uniform) == pytest.approx(len(values))


def test_estimators_differ_in_the_weights_only() -> None:
    rewards, ratios = np.array([[1.0, 0.0, 1.0, 0.0]]), np.log([[8.0, 0.5, 0.5, 1.0]])
    values = np.exp(rewards[0] / 0.5)
    rho = np.exp(ratios[0])
    expected = {
        "unbiased": (rho * values).mean(),
        "truncated": (np.minimum(rho, 2.0) * values).mean(),  # The cap is the root of four.
        "self_normalized": (rho * values).sum() / rho.sum(),
    }
    for estimator, mean in expected.items():
        found = energy.estimate(rewards, kl_coef=0.5, log_ratios=ratios, estimator=estimator)  # type: ignore[arg-type]
        assert found.log_energies[0] == pytest.approx(math.log(mean))
    with pytest.raises(ValueError, match="allowed: unbiased, truncated, self_normalized"):
        energy.estimate(rewards, kl_coef=0.5, log_ratios=ratios, estimator="best")  # type: ignore[arg-type]


def test_self_normalization_counts_judged_rollouts_only() -> None:
    rewards, ratios = np.array([[1.0, math.nan, 0.0]]), np.log([[2.0, 50.0, 1.0]])
    found = energy.estimate(rewards, kl_coef=1.0, log_ratios=ratios, estimator="self_normalized")
    assert found.log_energies[0] == pytest.approx(math.log((2 * math.e + 1) / 3))


def test_candidates_that_are_impossible_under_the_reference_have_no_weight() -> None:
    ratios = np.array([[MINUS_INFINITY, MINUS_INFINITY], [0.0, 0.0]])
    for estimator in ("unbiased", "truncated", "self_normalized"):
        found = energy.estimate(
            np.array([[1.0, 0.5], [0.0, 0.2]]),
            kl_coef=0.1,
            log_ratios=ratios,
            estimator=estimator,  # type: ignore[arg-type]
        )
        assert found.weights.tolist() == [0, 1]


@pytest.mark.parametrize("estimator", ["unbiased", "self_normalized"])
def test_standard_errors_are_those_of_repeated_estimates(estimator: energy.Estimator) -> None:
    rng, rounds, draws = np.random.default_rng(0), 3000, 64
    rewards = rng.random((rounds, draws))
    ratios = rng.normal(-0.125, 0.5, (rounds, draws))
    found = energy.estimate(rewards, kl_coef=0.5, log_ratios=ratios, estimator=estimator)
    spread = found.log_energies.std()
    assert np.mean(found.log_energy_errors) == pytest.approx(spread, rel=0.15)


def test_a_finished_candidate_has_no_error() -> None:
    rewards = np.array([[1.0, math.nan, math.nan], [1.0, 0.5, 0.0]])
    found = energy.estimate(rewards, kl_coef=1.0, exact=np.array([True, False]))
    assert found.log_energy_errors[0] == 0
    assert found.log_energy_errors[1] > 0


def test_one_rollout_borrows_its_error_from_the_others() -> None:
    found = energy.estimate(np.array([[1.0], [0.0], [0.5]]), kl_coef=1.0)
    assert (found.log_energy_errors > 0).all()


def test_selection_is_certain_where_nothing_is_left_to_learn() -> None:
    same = np.array([[1.0, 1.0], [1.0, 1.0]])
    certain = energy.estimate(same, kl_coef=0.1, ceiling=1.0)
    assert energy.selection_error(certain, [0, 1]) == 0
    for ceiling in (None, 2.0):  # Nothing is known of the scale; or something better is possible.
        doubtful = energy.estimate(same, kl_coef=0.1, ceiling=ceiling)
        assert energy.selection_error(doubtful, [0, 1]) > 0.5
    assert energy.selection_error(energy.estimate(same, kl_coef=0.0, ceiling=2.0), [0, 1]) > 0.5
    assert energy.selection_error(energy.estimate(same, kl_coef=1e4, ceiling=2.0), [0, 1]) < 0.01, "it hardly counts"
    finished = energy.estimate(same[:, :1], kl_coef=0.1, exact=np.array([True, True]))
    assert energy.selection_error(finished, [0, 1]) == 0
    nothing = energy.estimate(np.full((2, 2), math.nan), kl_coef=0.1)
    assert energy.selection_error(nothing, [0, 1]) == 1
    assert energy.selection_error(energy.estimate(np.array([[1.0, 0.0]]), kl_coef=0.1), [0]) == 0, "no choice"


def test_doubt_goes_with_the_number_of_rollouts() -> None:
    errors = [
        energy.selection_error(energy.estimate(np.zeros((8, k)), kl_coef=0.2, ceiling=1.0), list(range(8)))
        for k in (2, 8, 32, 128, 512)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.5
    assert errors[-1] < 0.05


def test_selection_error_is_the_distance_that_noise_makes() -> None:
    """Against simulation: weights of noisy energies around weights of exact ones."""
    rng, draws, rounds = np.random.default_rng(1), 200, 400
    means = np.array([0.2, 0.5, 0.4, 0.1])
    exact = np.exp(means / 0.5 + 0.5 * (0.3 / 0.5) ** 2)
    exact /= exact.sum()
    distances, stated = [], []
    for _ in range(rounds):
        found = energy.estimate(rng.normal(means[:, None], 0.3, (4, draws)), kl_coef=0.5)
        distances.append(np.abs(found.weights - exact).sum() / 2)
        stated.append(energy.selection_error(found, [0, 1, 2, 3]))
    assert np.mean(stated) == pytest.approx(np.mean(distances), rel=0.15)


def test_reweighting_keeps_energies_and_shares_in_proportion() -> None:
    found = energy.estimate(np.array([[1.0, 0.0], [0.5, 0.2], [MINUS_INFINITY, MINUS_INFINITY]]), kl_coef=0.5)
    moved = found.reweighted(np.log([2.0, 1.0, 5.0]))
    expected = found.weights * [2.0, 1.0, 5.0]
    assert moved.weights == pytest.approx(expected / expected.sum())
    assert moved.shares.sum(axis=1) == pytest.approx(moved.weights)
    assert moved.log_energies.tolist() == found.log_energies.tolist()


def test_the_normalizer_is_the_mean_energy() -> None:
    found = energy.estimate(np.array([[1.0, 0.0], [0.5, 0.5]]), kl_coef=0.5)
    value, error = energy.log_normalizer(found, [0, 1])
    assert value == pytest.approx(math.log((np.exp(2) + 1) / 4 + np.e / 2))
    assert error is not None
    assert error > 0
    single, unknown = energy.log_normalizer(energy.estimate(np.array([[1.0]]), kl_coef=0.5), [0])
    assert (single, unknown) == (pytest.approx(2.0), None)
    impossible = energy.estimate(np.array([[MINUS_INFINITY], [MINUS_INFINITY]]), kl_coef=0.5)
    assert energy.log_normalizer(impossible, [0, 1]) == (MINUS_INFINITY, None)
    nan, _ = energy.log_normalizer(energy.estimate(np.array([[math.nan]]), kl_coef=0.5), [0])
    assert math.isnan(nan)


def test_the_normalizer_has_no_error_where_none_can_be_told() -> None:
    ratios = np.array([[0.0, 0.0], [MINUS_INFINITY, MINUS_INFINITY], [0.1, 0.2]])
    value, error = energy.log_normalizer(energy.estimate(np.zeros((3, 2)), kl_coef=0.1, log_ratios=ratios), [0, 1, 2])
    assert math.isfinite(value)
    assert error is None or math.isfinite(error)
    _, shared = energy.log_normalizer(energy.estimate(np.zeros((3, 2)), kl_coef=0.1, log_ratios=ratios), [0, 1, 1])
    assert shared is None or math.isfinite(shared)
    tiny = energy.estimate(np.array([[1.0], [0.5], [1.0]]), kl_coef=5e-324)
    assert energy.log_normalizer(tiny, [0, 1, 2]) == (math.inf, None)
    assert tiny.weights.tolist() == [0.5, 0, 0.5]


def test_copies_that_share_rollouts_share_their_error() -> None:
    """Twenty copies of one candidate know no more about its energy than one of them."""
    rewards = np.array([[0.0, 1.0, 0.5, 0.2, 0.8, 0.4]])
    (expected,) = energy.estimate(rewards, kl_coef=0.5).log_energy_errors
    copied = energy.estimate(np.repeat(rewards, 20, axis=0), kl_coef=0.5)
    _, error = energy.log_normalizer(copied, [0] * 20)
    assert error == pytest.approx(expected, rel=0.1)
    _, apart = energy.log_normalizer(copied, list(range(20)))
    assert apart == pytest.approx(0, abs=1e-9), "their spread alone shows nothing"
