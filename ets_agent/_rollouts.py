"""Where rollouts come from: the reference itself, or a proposal with importance weights (ETS-IS, Algorithm 2)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from backends import Backend, BackendError, Completion, Prompt, PromptError, SamplingParams, State
from backends.errors import restated
from ets_agent._group import Candidate, Rollout


class RolloutSource(Protocol):
    """Completes the candidates of a run's steps."""

    drawn_tokens: int
    """Tokens of rollouts drawn so far, also of those that could not be used."""
    scored_tokens: int
    """Tokens scored under the reference so far."""

    async def begin(self, prompt: Prompt, start: State, *, max_tokens: int) -> None:
        """Prepare for a run whose reference starts from ``start``."""
        ...

    async def draw(self, candidates: Sequence[Candidate], parents: Sequence[State], n: int, *, seed: int) -> None:
        """Add n rollouts to each of some unfinished candidates.

        Args:
            candidates: The candidates.
            parents: The state of each chain; a candidate continues that of its own.
            n: Rollouts to add to each.
            seed: Of the draws.
        """
        ...

    def keep(self, states: Iterable[State]) -> None:
        """Forget what is known of all states but these, from which the chains go on."""
        ...


class ReferenceRollouts:
    """Rollouts from the reference, as in Algorithm 1."""

    def __init__(self, reference: Backend) -> None:
        """Hold nothing but the model."""
        self.drawn_tokens = self.scored_tokens = 0
        self._reference = reference

    async def begin(self, prompt: Prompt, start: State, *, max_tokens: int) -> None:
        """Do nothing: the candidates' states are the reference's own."""

    async def draw(self, candidates: Sequence[Candidate], parents: Sequence[State], n: int, *, seed: int) -> None:
        """Add n rollouts to each of some unfinished candidates."""
        drawn = await self._reference.rollout([candidate.state for candidate in candidates], n, seed=seed)
        self.drawn_tokens += _tokens(drawn)
        for candidate, completions in zip(candidates, drawn, strict=True):
            candidate.rollouts += [Rollout(completion) for completion in completions]

    def keep(self, states: Iterable[State]) -> None:
        """Do nothing: the reference's caches live as long as its states."""


class ProposalRollouts:
    """Rollouts from a proposal, weighed by ρ = p_ref(rollout | x_s) / p_small(rollout | x_s), as in Algorithm 2.

    Both log-probabilities are of the rollout's own tokens under the distributions that are sampled; the reference
    scores them from the candidate's state, whose cache it has.

    Args:
        reference: The model that candidates come from.
        proposal: The model that rollouts come from.
        params: What the proposal samples with.
    """

    def __init__(self, reference: Backend, proposal: Backend, params: SamplingParams) -> None:
        """Begin nothing yet."""
        self.drawn_tokens = self.scored_tokens = 0
        self._reference = reference
        self._proposal = proposal
        self._params = params
        self._twins: dict[State, State] = {}
        """The proposal's states by the reference's: those that chains or candidates stand on."""

    async def begin(self, prompt: Prompt, start: State, *, max_tokens: int) -> None:
        """Begin the same response with the proposal.

        Raises:
            backends.PromptError: The proposal cannot take this prompt, or not at this length.
        """
        try:
            self._twins = {start: await self._proposal.begin(prompt, max_tokens=max_tokens, params=self._params)}
        except PromptError as error:
            raise restated(error, f"the proposal refuses the prompt: {error}") from error

    async def draw(self, candidates: Sequence[Candidate], parents: Sequence[State], n: int, *, seed: int) -> None:
        """Add n rollouts to each of some unfinished candidates."""
        for candidate in candidates:
            if candidate.state not in self._twins:
                parent = self._twins[parents[candidate.chain]]
                (self._twins[candidate.state],) = self._proposal.adopt(parent, [candidate.state])
        twins = [self._twins[candidate.state] for candidate in candidates]
        drawn = [[_checked(c) for c in group] for group in await self._proposal.rollout(twins, n, seed=seed)]
        self.drawn_tokens += _tokens(drawn)
        usable = [[c for c in group if c.finish_reason != "error"] for group in drawn]
        scores = await self._reference.score([candidate.state for candidate in candidates], usable)
        if [len(line) for line in scores] != [len(group) for group in usable]:
            raise BackendError(f"{self._reference.name} did not return one score for each completion")
        self.scored_tokens += _tokens(usable)
        for candidate, completions, line in zip(candidates, drawn, scores, strict=True):
            scored = iter(line)
            candidate.rollouts += [
                Rollout(c) if c.finish_reason == "error" else _weighed(c, next(scored)) for c in completions
            ]

    def keep(self, states: Iterable[State]) -> None:
        """Forget the proposal's states, and with them its caches, of all candidates that no chain goes on from."""
        self._twins = {state: self._twins[state] for state in states if state in self._twins}


def _tokens(completions: Iterable[Iterable[Completion]]) -> int:
    return sum(completion.num_tokens for group in completions for completion in group)


def _weighed(completion: Completion, score: float) -> Rollout:
    """Return a rollout with its importance weight; minus infinity under the reference is weight 0."""
    if math.isnan(score) or score == math.inf:
        return Rollout(_failed(completion, f"the reference scored it {score}"))
    assert completion.logprob is not None
    return Rollout(completion, log_ratio=score - completion.logprob)


def _checked(completion: Completion) -> Completion:
    """Return a completion, marked as failed where it has no usable log-probability: it cannot be weighed."""
    if completion.finish_reason == "error" or (completion.logprob is not None and math.isfinite(completion.logprob)):
        return completion
    return _failed(completion, f"the proposal gave it the log-probability {completion.logprob}")


def _failed(completion: Completion, reason: str) -> Completion:
    return dataclasses.replace(completion, finish_reason="error", error=reason)
