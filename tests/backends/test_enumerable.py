"""The enumerable model is what it says: its lists agree with its draws, its energies with each other."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from backends import BackendError, Completion, SamplingParams, State
from backends.enumerable import EnumerableBackend

TABLES = {
    "": {"a": 0.6, "b": 0.3, "": 0.1},
    "a": {"a": 0.5, "": 0.5},
    "aa": {"b": 1.0},
    "b": {"a": 2.0, "b": 6.0},
}
KINDS = pytest.mark.parametrize("diffusion", [False, True], ids=["autoregressive", "diffusion"])
PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=0.6),
    SamplingParams(temperature=1.4, top_p=0.8),
    SamplingParams(top_k=2),
    SamplingParams(temperature=0),
    SamplingParams(stop=("ba",)),
]


def score(completion: Completion) -> float:
    return completion.text.count("a") - 0.5 * len(completion.text)


async def start_of(model: EnumerableBackend, max_tokens: int = 3, params: SamplingParams | None = None) -> State:
    return await model.begin("q", max_tokens=max_tokens, params=params or SamplingParams())


async def test_tables_give_the_probabilities_that_they_hold() -> None:
    model = EnumerableBackend.from_tables(TABLES)
    found = {(c.text, c.finish_reason): p for c, p in model.responses(await start_of(model)).items()}
    assert found == pytest.approx(
        {
            ("aab", "length"): 0.6 * 0.5,
            ("a", "stop"): 0.6 * 0.5,
            ("ba", "stop"): 0.3 * 0.25,
            ("bb", "stop"): 0.3 * 0.75,
            ("", "stop"): 0.1,
        }
    )


async def test_a_temperature_is_that_of_every_token() -> None:
    model = EnumerableBackend.from_tables({"": {"a": 0.8, "b": 0.2}, "a": {"a": 0.5, "b": 0.5}})
    start = await start_of(model, 1, SamplingParams(temperature=0.5))
    found = {completion.text: p for completion, p in model.responses(start).items()}
    assert found == pytest.approx({"a": 0.64 / 0.68, "b": 0.04 / 0.68})


@KINDS
@pytest.mark.parametrize("params", PARAMS, ids=str)
async def test_draws_follow_the_listed_distribution(diffusion: bool, params: SamplingParams) -> None:
    model, count = EnumerableBackend.random(4, diffusion=diffusion), 20_000
    start = await start_of(model, 3, params)
    exact = {(c.text, c.finish_reason): p for c, p in model.responses(start).items()}
    assert sum(exact.values()) == pytest.approx(1)
    [drawn] = await model.rollout([start], count, seed=1)
    found = Counter((completion.text, completion.finish_reason) for completion in drawn)
    assert set(found) <= set(exact)
    chi_squared = sum((found[key] - count * p) ** 2 / (count * p) for key, p in exact.items() if p > 0)
    freedom = len(exact) - 1
    assert chi_squared <= freedom + 4 * math.sqrt(2 * freedom) + 1


@KINDS
async def test_steps_compose_to_whole_responses(diffusion: bool) -> None:
    """Extending step by step draws from the same distribution as rolling out at once."""
    model, count = EnumerableBackend.random(4, diffusion=diffusion), 4000
    start = await start_of(model, 3)
    exact = model.responses(start)
    found: Counter[str] = Counter()
    for seed in range(count):
        state = start
        while not state.finished:
            [state] = await model.extend(state, 1, tokens=1, seed=3 * seed + state.num_tokens)
        found[state.text] += 1
    for text in {completion.text for completion in exact}:
        p = sum(q for completion, q in exact.items() if completion.text == text)
        assert abs(found[text] - count * p) < 4 * math.sqrt(count * p * (1 - p)) + 1


@KINDS
async def test_energies_are_martingales(diffusion: bool) -> None:
    """E(x_t) is the mean of E(x_s) over the successors, whatever the state."""
    model, kl_coef = EnumerableBackend.random(6, diffusion=diffusion), 0.3
    start = await start_of(model, 3)
    states = [start, *[s for s in await model.extend(start, 40, tokens=1, seed=0) if not s.finished]]
    for state in dict.fromkeys(states):
        count = 30_000
        successors = Counter(await model.extend(state, count, tokens=1, seed=1))
        energies = {s: math.exp(model.log_energy(s, score, kl_coef=kl_coef)) for s in successors}
        mean = sum(n * energies[s] for s, n in successors.items()) / count
        spread = math.sqrt(sum(n * (energies[s] - mean) ** 2 for s, n in successors.items())) / count
        assert abs(mean - math.exp(model.log_energy(state, score, kl_coef=kl_coef))) <= 4 * spread + 1e-9


async def test_the_optimal_policy_is_the_tilted_reference() -> None:
    model = EnumerableBackend.random(2)
    start = await start_of(model)
    reference = model.responses(start)
    for kl_coef in (0.05, 1.0, 1e300):
        policy = model.policy(start, score, kl_coef=kl_coef)
        normalizer = math.exp(model.log_energy(start, score, kl_coef=kl_coef))
        for completion, probability in policy.items():
            expected = reference[completion] * math.exp(score(completion) / kl_coef) / normalizer
            assert probability == pytest.approx(expected)
    limit = model.policy(start, score, kl_coef=0)
    best = {completion for completion in reference if score(completion) == max(map(score, reference))}
    assert {completion for completion, p in limit.items() if p > 0} == best
    assert sum(limit.values()) == pytest.approx(1)
    assert limit == pytest.approx(model.policy(start, score, kl_coef=1e-3), abs=1e-9)


async def test_rewards_of_minus_infinity_rule_responses_out() -> None:
    model = EnumerableBackend.random(2)
    start = await start_of(model)

    def only_a(completion: Completion) -> float:
        return 0.0 if "b" not in completion.text else -math.inf

    policy = model.policy(start, only_a, kl_coef=1)
    assert not any(p for completion, p in policy.items() if "b" in completion.text)
    nothing: Any = lambda completion: -math.inf  # noqa: E731
    assert model.log_energy(start, nothing, kl_coef=1) == -math.inf
    with pytest.raises(BackendError, match="minus infinity"):
        model.policy(start, nothing, kl_coef=1)


async def test_a_perturbed_model_is_near_and_has_the_same_tokens() -> None:
    model = EnumerableBackend.random(2)
    distances = []
    for scale in (0.0, 0.1, 3.0):
        other = model.perturbed(scale, seed=1)
        assert model.tokenization.difference(other.tokenization) is None
        mine = model.responses(await start_of(model))
        theirs = other.responses(await start_of(other))
        distances.append(sum(abs(mine[c] - theirs[c]) for c in mine) / 2)
    assert distances[0] == pytest.approx(0, abs=1e-12)
    assert 0 < distances[1] < 0.1 < distances[2]


async def test_diffusion_fills_positions_in_any_order() -> None:
    model = EnumerableBackend.random(2, letters="abc", diffusion=True)
    start = await start_of(model, 3)
    states = await model.extend(start, 200, tokens=1, seed=0)
    assert {state.token_ids.index(next(t for t in state.token_ids if t != -1)) for state in states} == {0, 1, 2}
    assert all(state.text == "" for state in states if state.token_ids[0] == -1), "only what stands for certain"
    [drawn] = await model.rollout([start], 200, seed=0)
    assert len({completion.positions for completion in drawn}) > 6
    [[swapped]] = await model.score([start], [[Completion(text="", token_ids=(0, 0), positions=(1, 1))]])
    assert swapped == -math.inf
    with pytest.raises(BackendError, match="2 tokens but 0 positions"):
        await model.score([start], [[Completion(text="", token_ids=(0, 0))]])


async def test_what_cannot_be_a_model_is_refused() -> None:
    for letters in ([], ["a", "a"], ["a", ""]):
        with pytest.raises(BackendError, match="letters must be distinct"):
            EnumerableBackend.random(0, letters=letters)
    bad: list[tuple[dict[str, dict[str, float]], str]] = [
        ({"": {"a": 1.0}, "b": {"a": 1.0}}, "'b' can never be used"),
        ({"": {"a": -1.0, "b": 2.0}}, "at least 0"),
        ({"": {"a": math.nan}}, "at least 0"),
        ({"": {"a": 0.0}}, "above 0"),
    ]
    for tables, complaint in bad:
        with pytest.raises(BackendError, match=complaint):
            EnumerableBackend.from_tables(tables)
    model = EnumerableBackend.random(0)
    with pytest.raises(BackendError, match="too many to list"):
        model.responses(await start_of(model, 40))
    with pytest.raises(BackendError, match="another backend"):
        await model.extend(State(), 1, tokens=1, seed=0)
