"""ETS samples from p*: measured against that policy itself, computed exactly, and told apart from wrong samplers.

Everything is seeded, so a bound that holds once holds always; where it stands between right and wrong is in the names.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import ets_agent._run as run_module
from backends import Backend, BackendContext, Completion, Prompt, SamplingParams, State
from backends.enumerable import EnumerableBackend
from ets_agent import ETS, Result, chains
from ets_agent._group import Candidate
from ets_agent._rollouts import ProposalRollouts, ReferenceRollouts
from rewards import Reward
from tests.enumeration import (
    KL_COEF,
    MAX_TOKENS,
    Valued,
    distance,
    noise_floor,
    optimum,
    reference,
    sample,
    texts,
    value,
)


class ExactEnergies(BackendContext):
    """The model with the true energy of every candidate: a single rollout, whose reward `Energetic` knows."""

    def __init__(self, model: EnumerableBackend) -> None:
        self.model = model
        self.known: dict[State, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    @property
    def name(self) -> str:
        return self.model.name

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        for state in states:
            if state not in self.known:
                self.known[state] = self.model.log_energy(state, value, kl_coef=KL_COEF)
        return [[Completion(text="", logprob=KL_COEF * self.known[state], token_ids=(0,))] for state in states]


class Energetic(Valued):
    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        return [c.logprob if c.token_ids else value(c) for c in completions]


async def run_exactly(model: EnumerableBackend, count: int, **settings: Any) -> list[Result]:
    backend: Any = ExactEnergies(model)
    ets = ETS(backend, Energetic(), num_rollouts=1, kl_coef=KL_COEF, max_tokens=MAX_TOKENS, **settings)
    results = await ets.complete_many(["q"] * count, seed=0, concurrency=1)
    return [result for result in results if isinstance(result, Result)]


@pytest.mark.parametrize("diffusion", [False, True], ids=["autoregressive", "diffusion"])
@pytest.mark.parametrize("num_steps", [1, 2, 4])
async def test_with_exact_energies_the_distance_falls_with_the_candidates(diffusion: bool, num_steps: int) -> None:
    model, count = EnumerableBackend.random(5, diffusion=diffusion), 500
    exact = await optimum(model)
    distances = [
        distance(texts(await run_exactly(model, count, num_candidates=m, num_steps=num_steps)), exact)
        for m in (1, 4, 16, 48)
    ]
    floor = noise_floor(exact, count)
    assert distances[0] == pytest.approx(distance(await reference(model), exact), abs=3 * floor), "M = 1 is p_ref"
    assert distances[1] < 0.75 * distances[0]
    assert distances[2] < distances[0] / 3
    assert distances[3] < 1.6 * floor


@pytest.mark.parametrize("diffusion", [False, True], ids=["autoregressive", "diffusion"])
@pytest.mark.parametrize("num_steps", [2, 4])
@pytest.mark.parametrize("temperature", [0.6, 1.5])
async def test_rollouts_estimate_the_energies(diffusion: bool, num_steps: int, temperature: float) -> None:
    model, count = EnumerableBackend.random(8, diffusion=diffusion), 400
    exact = await optimum(model, temperature=temperature)
    settings: dict[str, Any] = {"num_steps": num_steps, "temperature": temperature, "num_rollouts": 8}
    found = distance(texts(await sample(model, count, num_candidates=32, **settings)), exact)
    assert found < 1.8 * noise_floor(exact, count)
    assert distance(await reference(model, temperature=temperature), exact) > 0.3


async def test_copies_with_rollouts_of_their_own_reach_the_optimum_even_with_one_rollout() -> None:
    """Shared rollouts leave the error of K draws however large M is; the paper's do not."""
    model, count = EnumerableBackend.random(8), 700
    exact = await optimum(model, temperature=1.5)
    shared, own = [
        distance(
            texts(
                await sample(
                    model, count, num_candidates=64, num_rollouts=1, num_steps=4, temperature=1.5, share_rollouts=share
                )
            ),
            exact,
        )
        for share in (True, False)
    ]
    assert own < 1.8 * noise_floor(exact, count)
    assert shared > own


class WrongRatios(ProposalRollouts):
    """Importance weights with the mistakes of the code released with the paper, one by one or together."""

    prefix = False
    """Also the tokens before the rollout count, which the reference drew."""
    cold = False
    """Both sides are scored at temperature 1, whatever was sampled."""
    shifted = False
    """The last token is left out."""
    dropped = False
    """There is no ratio."""

    async def draw(self, candidates: Sequence[Candidate], parents: Sequence[State], n: int, *, seed: int) -> None:
        await super().draw(candidates, parents, n, seed=seed)
        for candidate in candidates:
            for rollout in candidate.rollouts:
                reference, proposal = [
                    await self._log_probability(model, candidate.state, rollout.completion)
                    for model in (self._reference, self._proposal)
                ]
                rollout.log_ratio = 0.0 if self.dropped else reference - proposal

    async def _log_probability(self, model: Backend, state: State, completion: Completion) -> float:
        params = SamplingParams() if self.cold else self._params
        start = await model.begin("q", max_tokens=MAX_TOKENS, params=params)
        if not self.prefix:
            (start,) = model.adopt(start, [state])
        ids = (state.token_ids if self.prefix else ()) + completion.token_ids
        positions = completion.positions
        if self.shifted:
            ids, positions = ids[:-1], positions[:-1]
        counted = dataclasses.replace(completion, token_ids=ids, positions=positions)
        return (await model.score([start], [[counted]]))[0][0]


IMPORTANCE = [
    pytest.param(5, {"temperature": 2.0, "num_steps": 4}, 2.0, id="hot"),
    pytest.param(2, {"temperature": 0.5, "num_steps": 4}, 0.6, id="cold"),
]


async def check_importance_sampling(seed: int, settings: dict[str, Any], scale: float) -> None:
    """Fail unless ETS with a proposal samples from the reference's optimal policy."""
    model, count = EnumerableBackend.random(seed), 700
    proposal = model.perturbed(scale, seed=50 + seed)
    exact = await optimum(model, temperature=settings["temperature"])
    results = await sample(model, count, proposal=proposal, num_candidates=32, num_rollouts=16, **settings)
    assert distance(texts(results), exact) < 0.09


@pytest.mark.parametrize(("seed", "settings", "scale"), IMPORTANCE)
async def test_rollouts_of_a_proposal_reach_the_references_optimum(
    seed: int, settings: dict[str, Any], scale: float
) -> None:
    await check_importance_sampling(seed, settings, scale)


@pytest.mark.parametrize(
    ("mistakes", "place"),
    [
        (["prefix"], 0),
        (["cold"], 0),
        (["dropped"], 0),
        (["prefix", "cold"], 0),
        (["prefix", "cold", "shifted"], 0),
        (["cold"], 1),
        (["shifted"], 1),
        (["dropped"], 1),
    ],
    ids=str,
)
async def test_a_wrong_ratio_is_found_out(mistakes: list[str], place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "ProposalRollouts", type("Wrong", (WrongRatios,), dict.fromkeys(mistakes, True)))
    with pytest.raises(AssertionError):
        await check_importance_sampling(*IMPORTANCE[place].values)


async def test_the_wrong_ratios_without_a_mistake_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """So what the test above finds are the mistakes, not the detour that makes them."""
    monkeypatch.setattr(run_module, "ProposalRollouts", WrongRatios)
    await check_importance_sampling(*IMPORTANCE[0].values)


@pytest.mark.parametrize("estimator", ["unbiased", "truncated", "self_normalized"])
async def test_a_diffusion_model_takes_a_proposal_of_the_same_schedule(estimator: str) -> None:
    model, count = EnumerableBackend.random(11, diffusion=True), 400
    proposal = model.perturbed(1.0, seed=3)
    exact = await optimum(model, temperature=1.2)
    settings: dict[str, Any] = {"num_candidates": 32, "num_rollouts": 16, "num_steps": 2, "temperature": 1.2}
    results = await sample(model, count, proposal=proposal, estimator=estimator, **settings)
    assert distance(texts(results), exact) < 2 * noise_floor(exact, count)


async def test_a_truncated_reference_gives_impossible_rollouts_no_weight() -> None:
    model, count = EnumerableBackend.random(1, letters="abc"), 600
    settings: dict[str, Any] = {"top_p": 0.6, "temperature": 1.5}
    exact = await optimum(model, **settings)
    ruled_out = set(await reference(model)) - set(exact)
    assert ruled_out
    results = await sample(
        model,
        count,
        proposal=model.perturbed(0.3, seed=1),
        num_candidates=32,
        num_rollouts=16,
        num_steps=2,
        proposal_temperature=1.5,
        **settings,
    )
    assert distance(texts(results), exact) < 2 * noise_floor(exact, count)
    assert not ruled_out & set(texts(results))
    rollouts = [rollout for result in results for line in result.steps[0].rollouts for rollout in line]
    impossible = [rollout for rollout in rollouts if rollout.log_ratio == -math.inf]
    assert 0.1 < len(impossible) / len(rollouts) < 0.95


async def test_a_proposal_of_another_temperature_is_weighed_for_it() -> None:
    model, count = EnumerableBackend.random(2), 700
    exact = await optimum(model, temperature=0.5)
    settings: dict[str, Any] = {"num_candidates": 32, "num_rollouts": 16, "num_steps": 4, "temperature": 0.5}
    results = await sample(model, count, proposal=model, proposal_temperature=1.0, **settings)
    assert distance(texts(results), exact) < 2 * noise_floor(exact, count)


async def chain_distances(num_chains: int, **settings: Any) -> tuple[float, float, list[Result]]:
    """Distance to p* with two candidates a chain and exact energies, the noise floor, and the results."""
    model, count = EnumerableBackend.random(9), 400
    exact = await optimum(model)
    results = await run_exactly(model, count, num_candidates=2, num_chains=num_chains, **settings)
    return distance(texts(results), exact), noise_floor(exact, count), results


@pytest.mark.parametrize("num_steps", [1, 2, 4])
async def test_many_chains_reach_the_optimum_with_two_candidates_each(num_steps: int) -> None:
    one, floor, _ = await chain_distances(1, num_steps=num_steps)
    many, _, _ = await chain_distances(32, num_steps=num_steps)
    assert one > 8 * floor
    assert many < 2 * floor


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
async def test_the_target_of_chains_does_not_depend_on_when_they_are_resampled(threshold: float) -> None:
    found, floor, results = await chain_distances(32, num_steps=4, ess_threshold=threshold)
    assert found < 2 * floor
    resampled = [step.resampled for result in results for step in result.steps[:-1]]
    assert threshold == 0 or any(resampled)
    assert threshold == 1 or not all(resampled)


async def test_chains_that_forget_their_weights_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = chains.pool
    monkeypatch.setattr(chains, "pool", lambda estimate, owners, factors: pool(estimate, owners, 0 * factors))
    found, floor, _ = await chain_distances(32, num_steps=4)
    assert found > 4 * floor


async def test_chains_work_with_estimated_energies_and_with_a_proposal() -> None:
    model, count = EnumerableBackend.random(10), 250
    exact = await optimum(model)
    settings: dict[str, Any] = {"num_candidates": 2, "num_rollouts": 8, "num_steps": 4, "num_chains": 24}
    for proposal in (None, model.perturbed(0.5, seed=1)):
        found = distance(texts(await sample(model, count, proposal=proposal, **settings)), exact)
        assert found < 2 * noise_floor(exact, count)


@pytest.mark.parametrize("chains", [1, 4])
@pytest.mark.parametrize("scale", [None, 0.8], ids=["reference", "proposal"])
async def test_the_log_normalizer_is_unbiased_in_linear_space(chains: int, scale: float | None) -> None:
    model = EnumerableBackend.random(8)
    start = await model.begin("q", max_tokens=MAX_TOKENS, params=SamplingParams(temperature=1.3))
    exact = model.log_energy(start, value, kl_coef=KL_COEF)
    proposal = None if scale is None else model.perturbed(scale, seed=4)
    settings: dict[str, Any] = {"num_candidates": 6, "num_rollouts": 3, "num_steps": 2, "temperature": 1.3}
    results = await sample(model, 800, proposal=proposal, num_chains=chains, **settings)
    ratios = np.exp([result.log_normalizer - exact for result in results if result.log_normalizer is not None])
    error = float(ratios.std() / math.sqrt(len(ratios)))
    assert len(ratios) == 800
    assert abs(ratios.mean() - 1) < 3 * error
    stated = [result.log_normalizer_error for result in results if result.log_normalizer_error is not None]
    assert len(stated) == 800
    assert 0.6 < np.mean(stated) / ratios.std() < 1.6, "the standard errors are about right"


class Hasty(ReferenceRollouts):
    """Decides for every candidate by its own first rollouts whether it gets more."""

    async def draw(self, candidates: Sequence[Candidate], parents: Sequence[State], n: int, *, seed: int) -> None:
        undecided = [c for c in candidates if len({r.reward for r in c.rollouts}) != 1]
        if undecided:
            await super().draw(undecided, parents, n, seed=seed)


class Rare(Reward):
    """1 for few responses, 0 for most."""

    pointwise = True

    def __init__(self, above: float, *, maximum: float | None = None) -> None:
        self.above, self.maximum = above, maximum

    def judge(self, completion: Completion) -> float:
        return float(value(completion) > self.above)

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        return [self.judge(completion) for completion in completions]


async def rate_of_success(reward: Rare, num_rollouts: Any, *, num_candidates: int) -> tuple[float, list[Result]]:
    ets = ETS(
        EnumerableBackend.random(5, letters="abcdefgh"),
        reward,
        num_candidates=num_candidates,
        num_rollouts=num_rollouts,
        num_steps=3,
        max_tokens=3,
        temperature=1.5,
        kl_coef=0.2,
    )
    results = await ets.complete_many(["q"] * 200, seed=2, concurrency=1)
    done = [result for result in results if isinstance(result, Result)]
    return float(np.mean([result.reward for result in done])), done


async def test_adaptive_rollouts_go_on_while_a_rare_success_may_be_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Success has probability 0.02 under the model and 0.78 under p*; two rollouts a candidate mostly miss it.

    A rule that looks at each candidate's own rollouts stops there, and so changes the target.
    """
    few, _ = await rate_of_success(Rare(0.97), 2, num_candidates=48)
    many, _ = await rate_of_success(Rare(0.97), 32, num_candidates=48)
    assert many - few > 0.15
    for maximum in (None, 1.0):
        adaptive, _ = await rate_of_success(Rare(0.97, maximum=maximum), (2, 32), num_candidates=48)
        assert abs(adaptive - many) < 0.08
    monkeypatch.setattr(run_module, "ReferenceRollouts", Hasty)
    hasty, _ = await rate_of_success(Rare(0.97), (2, 32), num_candidates=48)
    assert hasty < many - 0.15


async def test_adaptive_rollouts_keep_the_target_and_save_tokens_where_the_choice_is_clear() -> None:
    model, count = EnumerableBackend.random(8, letters="abc"), 400
    exact = await optimum(model, temperature=1.5)
    settings: dict[str, Any] = {"num_candidates": 32, "num_steps": 4, "temperature": 1.5}
    fixed = await sample(model, count, num_rollouts=32, **settings)
    adaptive = await sample(model, count, num_rollouts=(4, 32), **settings)
    assert distance(texts(adaptive), exact) < 2 * noise_floor(exact, count)
    spent, full = (sum(result.usage.rollout_tokens for result in results) for results in (adaptive, fixed))
    saved = sum(result.usage.saved_tokens for result in adaptive)
    assert saved > 0.15 * full
    assert saved == pytest.approx(full - spent, rel=0.2), "what is said to be saved is the difference"
    steps = [step for result in adaptive for step in result.steps[:-1]]
    assert len({step.num_rollouts for step in steps} - {0}) > 2
    assert not any(step.diagnostics.selection_error > 0.05 for step in steps if 0 < step.num_rollouts < 32)
