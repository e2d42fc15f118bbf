"""Scores given tokens with a server, and refuses those of a model whose responses end otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence

from backends.base import Completion, SamplingParams
from backends.endpoints.dialects import Dialect, EndpointState
from backends.errors import CapabilityError, EndpointError, TokenizerMismatchError
from backends.limits import Limiter

_SCORED_TOGETHER = 32
"""Most rollouts that one request has scored."""


class Scoring:
    """The scores of one server.

    Args:
        dialect: How to ask the server.
        name: What to call the model.
        limiter: Most requests at the same time.
    """

    def __init__(self, dialect: Dialect, *, name: str, limiter: Limiter) -> None:
        """Send nothing yet."""
        self._dialect = dialect
        self._name = name
        self._limiter = limiter
        self._ends: dict[int, bool] = {}
        """Of tokens that have ended a response elsewhere, whether they end one here."""

    def possible(self, params: SamplingParams) -> bool:
        """Whether the server scores given tokens under these parameters."""
        known = self._dialect.capabilities
        return known.score and (params.plain or known.tempered_score)

    async def score(
        self, states: Sequence[EndpointState], completions: Sequence[Sequence[Completion]], *, rank: int
    ) -> list[list[float]]:
        """Return the log-probabilities (nats) of completions; see `backends.Backend.score`.

        Args:
            states: What they complete.
            completions: For each state.
            rank: Of the requests, see `Limiter.map`.

        Raises:
            CapabilityError: The server does not score, or not under these sampling parameters.
            TokenizerMismatchError: A completion was ended by a token that ends none here.
            EndpointError: A request failed for good.
        """
        for state in states:
            self._check(state.params)
        chunks = [
            (state, [c.token_ids for c in group[first : first + _SCORED_TOGETHER]])
            for state, group in zip(states, completions, strict=True)
            for first in range(0, len(group), _SCORED_TOGETHER)
        ]
        sums = await self._limiter.map(lambda chunk: self._sums(*chunk), chunks, rank=rank)
        flat = iter([total for chunk in sums for total in chunk])
        scores = [[next(flat) for _ in group] for group in completions]
        await self._check_ends(states, completions, scores, rank=rank)
        return scores

    def _check(self, params: SamplingParams) -> None:
        if self.possible(params):
            return
        if not self._dialect.capabilities.score:
            raise CapabilityError(f"{self._name} cannot score given tokens")
        raise CapabilityError(
            f"{self._name} scores given tokens at temperature 1 without truncation only, not at temperature "
            f"{params.temperature:g}, top_p {params.top_p:g}, top_k {params.top_k}"
        )

    async def _check_ends(
        self,
        states: Sequence[EndpointState],
        completions: Sequence[Sequence[Completion]],
        scores: Sequence[Sequence[float]],
        *,
        rank: int,
    ) -> None:
        """Refuse completions that are possible here, but not over: their probability is not that of a whole response.

        Where there are stop strings, nothing is refused: the last token may be of one of them.
        """
        last = {
            completion.token_ids[-1]: state
            for state, group, line in zip(states, completions, scores, strict=True)
            for completion, score in zip(group, line, strict=True)
            if completion.token_ids and completion.finish_reason == "stop" and score > -math.inf
            if not state.params.stop
        }
        unknown = [(state, token) for token, state in last.items() if token not in self._ends]
        ends = await self._limiter.map(lambda asked: self._dialect.ends(*asked), unknown, rank=rank)
        self._ends.update(zip([token for _, token in unknown], ends, strict=True))
        if going_on := [token for token in last if not self._ends[token]]:
            raise TokenizerMismatchError(
                f"the model that drew these completions ends responses with token {going_on[0]}, which ends none of "
                f"{self._name}; importance weights need two models whose responses end alike"
            )

    async def _sums(self, state: EndpointState, rollouts: Sequence[Sequence[int]]) -> list[float]:
        """Return the log-probabilities of rollouts; no tokens have 0, and unknown ones minus infinity."""
        asked = [place for place, rollout in enumerate(rollouts) if rollout]
        totals = [0.0] * len(rollouts)
        if not asked:
            return totals
        try:
            scored = await self._dialect.score(state, [rollouts[place] for place in asked])
        except EndpointError as error:
            if "out of vocabulary" not in str(error):
                raise
            if len(asked) == 1:
                totals[asked[0]] = -math.inf
                return totals
            return [(await self._sums(state, [rollout]))[0] for rollout in rollouts]
        for place, logprobs in zip(asked, scored, strict=True):
            totals[place] = math.fsum(logprobs) if -math.inf not in logprobs else -math.inf
        return totals
