"""E_small[ρ] = 1 and E_small[ρ f] = E_ref[f], within the Monte Carlo error, on every kind of model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import backends
from backends import Backend, Completion, SamplingParams
from backends.enumerable import EnumerableBackend
from ets_agent._group import Candidate
from ets_agent._rollouts import ProposalRollouts
from ets_agent.evaluation import word_problems

QUESTION = word_problems.problems("test", 1, seed=3)[0].question

LENGTHS = {0.5: (4, 6), 1.0: (4, 6), 1.5: (3, 4)}
"""Tokens of the candidates and of their rollouts, by temperature: longer ones have variances too large to test."""

TEMPERATURES = pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])


@dataclass(frozen=True)
class Weighed:
    """Rollouts of one candidate, drawn from both models, and their ratios."""

    proposed: list[Completion]
    ratios: np.ndarray
    own: list[Completion]
    own_ratios: np.ndarray


async def weigh(
    reference: Backend, proposal: Backend, prompt: Any, count: int, *, tokens: int, left: int, temperature: float
) -> list[Weighed]:
    params = SamplingParams(temperature=temperature)
    start = await reference.begin(prompt, max_tokens=tokens + left, params=params)
    drawn = dict.fromkeys(await reference.extend(start, 8, tokens=tokens, seed=1))
    candidates = [Candidate(state, chain=0) for state in drawn if not state.finished][:2]
    source = ProposalRollouts(reference, proposal, params)
    await source.begin(prompt, start, max_tokens=tokens + left)
    await source.draw(candidates, [start], count, seed=2)
    states = [candidate.state for candidate in candidates]
    own = await reference.rollout(states, count, seed=3)
    twins = proposal.adopt(await proposal.begin(prompt, max_tokens=tokens + left, params=params), states)
    scores = await proposal.score(twins, own)
    return [
        Weighed(
            [rollout.completion for rollout in candidate.rollouts],
            np.exp([rollout.log_ratio for rollout in candidate.rollouts]),
            group,
            np.exp(np.array([completion.logprob for completion in group], dtype=np.float64) - line),
        )
        for candidate, group, line in zip(candidates, own, scores, strict=True)
    ]


def check(group: Weighed) -> None:
    """Compare means within three standard errors.

    A proposal's own draws may miss where ρ is large, and then look more certain than they are. So the variance comes
    from draws of the reference, which do not miss it: E_small[ρ² f²] = E_ref[ρ f²].
    """
    count = len(group.proposed)
    for name, f in FUNCTIONS.items():
        mine = np.array([f(completion) for completion in group.own])
        found = float((group.ratios * [f(completion) for completion in group.proposed]).mean())
        expected = 1.0 if name == "one" else float(mine.mean())
        variance = float((group.own_ratios * mine**2).mean()) - expected**2
        error = math.sqrt((variance + (0.0 if name == "one" else float(mine.var()))) / count)
        assert error < 0.1 * max(1.0, expected), f"{name}: too noisy to say anything"
        assert abs(found - expected) < 3 * error + 1e-3, name


FUNCTIONS: dict[str, Callable[[Completion], float]] = {
    "one": lambda completion: 1.0,
    "length": lambda completion: float(len(completion.token_ids)),
    "contains": lambda completion: float(completion.text.count("1") + completion.text.count("a") > 1),
}


@TEMPERATURES
@pytest.mark.parametrize("diffusion", [False, True], ids=["autoregressive", "diffusion"])
async def test_on_the_enumerable_model(diffusion: bool, temperature: float) -> None:
    model = EnumerableBackend.random(3, diffusion=diffusion)
    proposal = model.perturbed(0.4, seed=1)
    groups = await weigh(model, proposal, "q", 20_000, tokens=1, left=3, temperature=temperature)
    assert groups
    for group in groups:
        check(group)


@TEMPERATURES
async def test_on_the_embedded_models(temperature: float) -> None:
    torch.set_num_threads(1)
    async with backends.load("tiny/qwen3") as reference, backends.load("tiny/qwen3-small") as proposal:
        prompt, (tokens, left) = [{"role": "user", "content": QUESTION}], LENGTHS[temperature]
        groups = await weigh(reference, proposal, prompt, 6000, tokens=tokens, left=left, temperature=temperature)
        assert groups
        for group in groups:
            check(group)
