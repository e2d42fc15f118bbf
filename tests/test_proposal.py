"""ETS with a proposal: what it asks of both models, what it refuses, what it reports."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import math
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import backends
from backends import (
    Backend,
    BackendError,
    Capabilities,
    CapabilityError,
    Completion,
    ContextLengthError,
    State,
    Tokenization,
    TokenizerMismatchError,
)
from backends.enumerable import EnumerableBackend
from backends.local import LocalBackend
from backends.local.cache import Computed
from backends.scripted import ScriptedBackend
from ets_agent import ETS, ConfigError, ETSConfig, Finished, Result, StepStarted, Warned
from ets_agent.evaluation import word_problems
from tests.enumeration import Valued, sample

MODEL = EnumerableBackend.random(1)
SETTINGS: dict[str, Any] = {"num_candidates": 6, "num_rollouts": 4, "num_steps": 4, "max_tokens": 4}


class Watched(EnumerableBackend):
    """Remembers what it was asked."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.rolled: list[State] = []
        self.extended: list[State] = []
        self.scored: list[tuple[State, Completion]] = []
        self.closed = False

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        self.extended.append(state)
        return await super().extend(state, n, tokens=tokens, seed=seed)

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        self.rolled += states
        return await super().rollout(states, n, seed=seed)

    async def score(self, states: Sequence[State], completions: Sequence[Sequence[Completion]]) -> list[list[float]]:
        self.scored += [(state, c) for state, group in zip(states, completions, strict=True) for c in group]
        return await super().score(states, completions)

    async def aclose(self) -> None:
        self.closed = True
        await super().aclose()


async def test_candidates_come_from_the_reference_and_rollouts_from_the_proposal() -> None:
    reference, proposal = Watched.random(1), Watched.random(1)
    ets = ETS(reference, Valued(), proposal, **SETTINGS)
    results = [await ets.complete("q", seed=seed) for seed in range(20)]
    assert reference.extended
    assert proposal.rolled
    assert not reference.rolled
    assert not proposal.extended
    assert not proposal.scored
    assert not any(state.finished for state in proposal.rolled), "a finished candidate is known exactly"
    for state, completion in reference.scored:
        assert len(completion.token_ids) <= 4 - state.num_tokens, "the rollout's own tokens and nothing else"
    usage = [result.usage for result in results]
    assert sum(u.scoring_tokens for u in usage) == sum(len(c.token_ids) for _, c in reference.scored)
    assert all(u.scoring_tokens == u.rollout_tokens for u in usage)
    assert {result.proposal for result in results} == {"enumerable-1"}


async def test_one_step_needs_no_proposal_at_all() -> None:
    proposal = Watched.random(1)
    result = await ETS(MODEL, Valued(), proposal, **SETTINGS | {"num_steps": 1}).complete("q", seed=0)
    assert proposal.rolled == []
    assert result.usage.scoring_tokens == 0
    assert result.steps[0].diagnostics.ratio_ess is None


@pytest.mark.parametrize("estimator", ["unbiased", "truncated", "self_normalized"])
@pytest.mark.parametrize("diffusion", [False, True], ids=["autoregressive", "diffusion"])
async def test_the_reference_as_its_own_proposal_is_plain_ets(estimator: str, diffusion: bool) -> None:
    model = EnumerableBackend.random(3, diffusion=diffusion)
    for settings in (SETTINGS, SETTINGS | {"num_chains": 3, "num_rollouts": (2, 8)}):
        plain, weighed = ETS(model, Valued(), **settings), ETS(model, Valued(), model, estimator=estimator, **settings)
        for seed in range(30):
            one, other = await plain.complete("q", seed=seed), await weighed.complete("q", seed=seed)
            assert one.text == other.text
            for mine, theirs in zip(one.steps, other.steps, strict=True):
                assert mine.chosen == theirs.chosen
                assert mine.weights == pytest.approx(theirs.weights)
            ratios = [r.log_ratio for step in other.steps for line in step.rollouts for r in line]
            assert all(ratio is None or abs(ratio) < 1e-9 for ratio in ratios)


@pytest.fixture
async def pair() -> AsyncIterator[tuple[LocalBackend, LocalBackend]]:
    torch.set_num_threads(1)
    async with backends.load("tiny/qwen3") as reference, backends.load("tiny/qwen3-small") as proposal:
        assert isinstance(reference, LocalBackend)
        assert isinstance(proposal, LocalBackend)
        yield reference, proposal


async def test_an_embedded_model_as_its_own_proposal_is_plain_ets(pair: tuple[LocalBackend, LocalBackend]) -> None:
    """All ratios are 1 up to float32 rounding, which must not even break a tie of votes."""
    reference, _ = pair
    settings: dict[str, Any] = {"block_size": 16, "max_tokens": 64}
    async with backends.load("tiny/qwen3") as twin:
        plain = ETS(reference, "self_consistency", **settings)
        weighed = ETS(reference, "self_consistency", twin, **settings)
        for seed, problem in enumerate(word_problems.problems("test", 12, seed=4)):
            prompt = [{"role": "user", "content": problem.question}]
            one, other = await plain.complete(prompt, seed=seed), await weighed.complete(prompt, seed=seed)
            assert one.text == other.text
            assert [step.candidates for step in one.steps] == [step.candidates for step in other.steps]
            ratios = [r.log_ratio for step in other.steps for line in step.rollouts for r in line]
            assert max(abs(ratio) for ratio in ratios if ratio is not None) < 1e-3
            for mine, theirs in zip(one.steps, other.steps, strict=True):
                assert mine.weights == pytest.approx(theirs.weights, abs=1e-3)


async def test_nothing_is_computed_twice_by_either_model(pair: tuple[LocalBackend, LocalBackend]) -> None:
    """The proposal reads the prompt once and each candidate once; scoring starts from the candidate's cache."""
    reference, proposal = pair
    prompt = [{"role": "user", "content": word_problems.problems("test", 1, seed=4)[0].question}]
    before = reference._model.forward_tokens, proposal._model.forward_tokens
    result = await ETS(reference, "self_consistency", proposal, block_size=16, max_tokens=64).complete(prompt, seed=1)
    ours, theirs = (
        model._model.forward_tokens - past for model, past in zip((reference, proposal), before, strict=True)
    )
    start = await reference.begin(prompt, max_tokens=64, params=ETSConfig().sampling)
    length = len(start.prompt_ids)  # type: ignore[attr-defined]
    assert ours <= length + result.usage.candidate_tokens + result.usage.scoring_tokens
    candidates = sum(len(set(step.candidates)) * 16 for step in result.steps)
    assert theirs <= length + candidates + result.usage.rollout_tokens
    assert theirs > length + result.usage.rollout_tokens / 2


@pytest.mark.parametrize("chains", [1, 3])
async def test_the_caches_of_rejected_candidates_go(pair: tuple[LocalBackend, LocalBackend], chains: int) -> None:
    """Between steps each model keeps what the chains stand on, and after the run nothing."""
    reference, proposal = pair
    prompt = [{"role": "user", "content": word_problems.problems("test", 1, seed=4)[0].question}]

    def alive() -> int:
        gc.collect()
        return sum(type(thing) is Computed for thing in gc.get_objects())

    async def settled(most: int) -> int:
        """Count them when the models' threads, which may be behind on a busy machine, have let go of the last ones."""
        end = time.monotonic() + 20
        while (count := alive() - before) > most and time.monotonic() < end:
            await asyncio.sleep(0.05)
        return count

    before = alive()
    ets = ETS(reference, "self_consistency", proposal, block_size=12, max_tokens=60, num_chains=chains)
    counts = [await settled(2 * chains) async for event in ets.stream(prompt, seed=1) if isinstance(event, StepStarted)]
    assert len(counts) > 2
    assert counts[0] == 0
    assert max(counts) <= 2 * chains
    assert min(counts[1:]) >= 2
    assert await settled(0) == 0


async def test_tokens_without_an_embedding_are_refused_before_they_reach_the_model(
    pair: tuple[LocalBackend, LocalBackend],
) -> None:
    _, proposal = pair
    start = await proposal.begin("Hi", max_tokens=4, params=ETSConfig().sampling)
    (state,) = await proposal.extend(start, 1, tokens=1, seed=0)
    odd_one = dataclasses.replace(state, token_ids=(proposal._model.vocabulary_size,))
    with pytest.raises(BackendError, match="has no embedding"):
        proposal.adopt(start, [odd_one])


def tokenization(**changes: Any) -> Tokenization:
    return dataclasses.replace(MODEL.tokenization, **changes)


class Odd(EnumerableBackend):
    """Claims what it is told to claim."""

    claims: Capabilities = Capabilities()
    tokens: Tokenization | None = MODEL.tokenization

    @property
    def capabilities(self) -> Capabilities:
        return self.claims

    @property
    def tokenization(self) -> Any:
        return self.tokens


def odd(**attributes: Any) -> Odd:
    model = Odd.random(1)
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


@pytest.mark.parametrize(
    ("tokens", "difference"),
    [
        (tokenization(size=7), "one vocabulary has 3 tokens, the other 7"),
        (tokenization(vocabulary="other"), "the same size, but their tokens differ"),
        (tokenization(probe=(1, 2)), "split in different ways"),
        (tokenization(end_ids=frozenset({0, 1})), "the tokens that end a response differ: 2 and 0, 1"),
    ],
)
def test_models_with_different_tokens_are_refused(tokens: Tokenization, difference: str) -> None:
    with pytest.raises(TokenizerMismatchError, match=difference) as caught:
        ETS(MODEL, Valued(), odd(tokens=tokens))
    assert "do not have the same tokenizer" in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "proposal", "complaint"),
    [
        (odd(claims=Capabilities(score=False)), MODEL, "cannot score given tokens"),
        (MODEL, odd(claims=Capabilities(logprobs=False)), "gives no log-probabilities"),
        (MODEL, odd(claims=Capabilities(full_support=False)), "cannot draw every token"),
        (MODEL, odd(claims=Capabilities(continue_prefix=False)), "cannot continue a prefix"),
        (MODEL, odd(tokens=None), "does not tell its tokens"),
        (MODEL, ScriptedBackend(["a"]), "scripted does not tell its tokens"),
    ],
    ids=["score", "logprobs", "support", "prefix", "tokens", "scripted"],
)
def test_what_a_model_cannot_do_is_refused_at_construction(
    reference: Backend, proposal: Backend, complaint: str
) -> None:
    with pytest.raises(CapabilityError, match=complaint):
        ETS(reference, Valued(), proposal)


@pytest.mark.parametrize(
    "settings", [{"top_p": 0.9}, {"top_k": 5}, {"temperature": 0}, {"temperature": 1e-40}], ids=str
)
def test_a_truncated_proposal_is_refused_and_the_remedy_named(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be able to draw every token") as caught:
        ETS(MODEL, Valued(), MODEL, **settings)
    assert "proposal_temperature" in str(caught.value)
    ets = ETS(MODEL, Valued(), MODEL)
    with pytest.raises(ConfigError, match="must be able to draw every token"):
        ets.stream("q", **settings)
    ETS(MODEL, Valued(), MODEL, proposal_temperature=1.0, **settings)


def test_what_is_no_proposal_is_refused() -> None:
    wrong: list[Any] = [5, object(), ["tiny/qwen3"]]
    for proposal in wrong:
        with pytest.raises(ConfigError, match="proposal must be"):
            ETS(MODEL, Valued(), proposal)
    with pytest.raises(ConfigError, match=r"proposal_temperature is 0\.7, but there is no proposal"):
        ETS(MODEL, Valued(), proposal_temperature=0.7)
    with pytest.raises(ConfigError, match="estimator is truncated, but there is no proposal"):
        ETS(MODEL, Valued(), estimator="truncated")
    with pytest.raises(ConfigError, match="must be able to draw every token"):
        ETS(MODEL, Valued(), MODEL, proposal_temperature=1e-40)
    with pytest.raises(ConfigError, match="estimator"):
        ETS(MODEL, Valued(), MODEL, estimator="best")
    with pytest.raises(ConfigError, match="proposal_temperature"):
        ETS(MODEL, Valued(), MODEL, proposal_temperature=0)


async def test_only_what_was_loaded_here_is_closed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    own, given = Watched.random(1), Watched.random(1)
    monkeypatch.setattr("backends.load", lambda name: own)
    async with ETS(given, Valued(), "by name"), ETS(given, Valued(), given):
        pass
    assert (own.closed, given.closed) == (True, False)


LOSSES: dict[str, dict[str, Any]] = {
    "failed": {"finish_reason": "error"},
    "without a log-probability": {"logprob": None},
    "impossible": {"logprob": -math.inf},
    "not a number": {"logprob": math.nan},
}


@pytest.mark.parametrize("lost", LOSSES)
async def test_failed_draws_of_the_proposal_are_left_out(lost: str) -> None:
    class Flaky(EnumerableBackend):
        async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
            groups = await super().rollout(states, n, seed=seed)
            return [[dataclasses.replace(group[0], **LOSSES[lost]), *group[1:]] for group in groups]

    result = await ETS(MODEL, Valued(), Flaky.random(1), **SETTINGS).complete("q", seed=0)
    assert "rollouts failed and were left out" in result.warnings[0]
    failed = [r for line in result.steps[0].rollouts for r in line if r.finish_reason == "error"]
    assert failed
    assert all(rollout.reward is None for rollout in failed)


@pytest.mark.parametrize("score", [math.nan, math.inf])
async def test_scores_that_are_no_log_probabilities_cost_their_rollouts(score: float) -> None:
    class Broken(EnumerableBackend):
        async def score(self, states: Sequence[State], completions: Any) -> list[list[float]]:
            return [[score, *line[1:]] for line in await super().score(states, completions)]

    result = await ETS(Broken.random(1), Valued(), MODEL, **SETTINGS).complete("q", seed=0)
    assert "rollouts failed and were left out" in result.warnings[0]
    assert all(math.isfinite(weight) for step in result.steps for weight in step.weights)


@pytest.mark.parametrize("change", [-1, 1], ids=["too few", "too many"])
async def test_scores_of_the_wrong_shape_are_an_error(change: int) -> None:
    class Broken(EnumerableBackend):
        async def score(self, states: Sequence[State], completions: Any) -> list[list[float]]:
            return [[*line, 0.0][: len(line) + change] for line in await super().score(states, completions)]

    with pytest.raises(BackendError, match="did not return one score for each completion"):
        await ETS(Broken.random(1), Valued(), MODEL, **SETTINGS).complete("q", seed=0)


async def test_a_prompt_that_the_proposal_refuses_names_the_proposal() -> None:
    class Choosy(EnumerableBackend):
        async def begin(self, prompt: Any, *, max_tokens: int, params: Any) -> State:
            raise ContextLengthError("too long for me")

    ets = ETS(MODEL, Valued(), Choosy.random(1), **SETTINGS)
    with pytest.raises(ContextLengthError, match="the proposal refuses the prompt: too long for me"):
        await ets.complete("q", seed=0)
    assert (await ets.complete("q", seed=0, num_steps=1)).text is not None, "one step does not need it"


async def test_a_far_proposal_is_said_to_be_far_in_events_trace_and_result() -> None:
    ets = ETS(MODEL, Valued(), MODEL.perturbed(6.0, seed=2), **SETTINGS | {"num_rollouts": 32})
    said = [event async for event in ets.stream("q", seed=1)]
    warned = [event for event in said if isinstance(event, Warned)]
    assert warned
    assert warned[0].message.startswith("proposal too far from the reference: ESS ")
    assert isinstance(said[-1], Finished)
    result = said[-1].result
    assert result.warnings == [event.message for event in warned]
    assert result.steps[warned[0].step - 1].diagnostics.verdict == warned[0].message
    near = await ETS(MODEL, Valued(), MODEL.perturbed(0.05, seed=1), **SETTINGS).complete("q", seed=0)
    assert near.warnings == []


async def test_every_step_tells_how_far_its_weights_can_be_trusted() -> None:
    results = await sample(
        MODEL, 20, proposal=MODEL.perturbed(0.5, seed=1), num_candidates=12, num_rollouts=16, num_steps=4
    )
    for step in (step for result in results for step in result.steps):
        checks, draws = step.diagnostics, sum(len(line) for line in step.rollouts)
        assert 1 <= checks.rollout_ess <= draws
        assert 0 < checks.largest_share <= 1
        assert checks.largest_share >= 1 / draws
        assert 0 <= checks.selection_error <= 1
        assert all(error is None or error >= 0 for error in step.log_energy_errors)
        finished = [e for e, f, w in zip(step.log_energy_errors, step.finished, step.weights, strict=True) if f and w]
        assert all(error == 0 for error in finished)
        rolled = len({text for text, over in zip(step.candidates, step.finished, strict=True) if not over})
        assert checks.num_ratios == 16 * rolled
        assert step.num_rollouts == (16 if rolled else 0)
        assert (checks.pareto_k is None) or checks.num_ratios >= 25
        assert checks.ratio_ess is None or 0 <= checks.ratio_ess <= checks.num_ratios
    assert any(step.diagnostics.pareto_k is not None for result in results for step in result.steps)
    assert any(error for result in results for step in result.steps for error in step.log_energy_errors)
    assert Result.model_validate_json(results[0].model_dump_json()) == results[0]


async def test_importance_weights_are_votes() -> None:
    """Under self-consistency a rollout counts as often as the reference would have drawn it."""
    letters = ["#### 1", "#### 2"]
    tables = {"": {"?": 1.0}, "?": {"#### 1": 0.9, "#### 2": 0.1}}
    proposed = {"": {"?": 1.0}, "?": {"#### 1": 0.1, "#### 2": 0.9}}
    reference, proposal = (EnumerableBackend.from_tables(t, name=n) for t, n in ((tables, "r"), (proposed, "p")))
    ets = ETS(reference, "self_consistency", proposal, num_candidates=2, num_rollouts=200, block_size=1, max_tokens=3)
    result = await ets.complete("q", seed=0)
    rewards = {rollout.text: rollout.reward for rollout in result.steps[0].rollouts[0]}
    assert rewards == {"?" + letters[0]: 1.0, "?" + letters[1]: 0.0}, "the reference's majority, not the proposal's"


async def test_cancelling_and_deadlines_reach_the_proposal() -> None:
    class Slow(EnumerableBackend):
        active = 0

        async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
            type(self).active += 1
            try:
                await asyncio.sleep(30)
            finally:
                type(self).active -= 1
            raise AssertionError

    ets = ETS(MODEL, Valued(), Slow.random(1), **SETTINGS | {"num_chains": 3})
    result = await ets.complete("q", timeout=0.05, seed=0)
    assert result.cut_short
    assert Slow.active == 0
    run = asyncio.create_task(ets.complete("q", seed=0))
    while Slow.active == 0:
        await asyncio.sleep(0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert Slow.active == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_rewards_are_finite_numbers_of_the_whole_response() -> None:
    results = await sample(MODEL, 5, proposal=MODEL.perturbed(0.3, seed=2), num_steps=2, num_rollouts=3)
    for step in (step for result in results for step in result.steps):
        assert np.isfinite([r.reward for line in step.rollouts for r in line]).all()


def test_the_proposal_samples_with_its_own_temperature_and_the_runs_stop_strings() -> None:
    config = ETSConfig.build(temperature=0.7, top_p=0.9, top_k=3, stop="x", proposal_temperature=1.3)
    params = config.proposal_sampling
    assert (params.temperature, params.top_p, params.top_k, params.stop) == (1.3, 1.0, 0, ("x",))
    assert (
        ETSConfig.build(temperature=0.7, stop="x").proposal_sampling
        == ETSConfig.build(temperature=0.7, stop="x").sampling
    )
