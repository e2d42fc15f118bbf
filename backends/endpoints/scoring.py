"""Scores given tokens with a server, and refuses those of a model whose responses end otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from backends.base import Completion, SamplingParams
from backends.endings import ended_by, gone_past, refuse_other_endings
from backends.endpoints.decoding import looks_special
from backends.endpoints.dialects import Dialect, EndpointState
from backends.errors import CapabilityError, EndpointError
from backends.limits import Limiter

_SCORED_TOGETHER = 32
"""Most rollouts that one request has scored."""


class _Score(NamedTuple):
    """A rollout's log-probability (nats), and those of its tokens whose text looks like a special one's."""

    total: float
    special: frozenset[int] = frozenset()


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
        self._ends: dict[int, bool | None] = {}
        """Of tokens that were asked about, whether they end a response; None where the server does not tell."""

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
            TokenizerMismatchError: A completion ends with a token that ends none here, or goes on after one that does.
            EndpointError: A request failed for good.
        """
        for state in states:
            self._check(state.params)
        chunks = [
            (state, [c.token_ids for c in group[first : first + _SCORED_TOGETHER]])
            for state, group in zip(states, completions, strict=True)
            for first in range(0, len(group), _SCORED_TOGETHER)
        ]
        scored = await self._limiter.map(lambda chunk: self._scored(*chunk), chunks, rank=rank)
        flat = iter([score for chunk in scored for score in chunk])
        scores = [[next(flat) for _ in group] for group in completions]
        await self._check_ends(states, completions, scores, rank=rank)
        return [[score.total for score in line] for line in scores]

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
        scores: Sequence[Sequence[_Score]],
        *,
        rank: int,
    ) -> None:
        """Refuse completions whose probability here is not that of a whole response; see `backends.endings`.

        A server is asked once about a token: about those that ended completions which are possible here, and about
        those within completions that look special, as all do that end responses, unless somebody has set others.
        """
        ended: dict[int, EndpointState] = {}
        past: dict[int, EndpointState] = {}
        for state, group, line in zip(states, completions, scores, strict=True):
            for completion, score in zip(group, line, strict=True):
                if score.total > -math.inf and (last := ended_by(completion, state.params.stop)) is not None:
                    ended[last] = state
                if score.special:
                    past |= dict.fromkeys(score.special.intersection(gone_past(completion)), state)
        unknown = [(state, token) for token, state in (ended | past).items() if token not in self._ends]
        ends = await self._limiter.map(lambda asked: self._dialect.ends(*asked), unknown, rank=rank)
        self._ends.update(zip([token for _, token in unknown], ends, strict=True))
        refuse_other_endings(self._name, ended, past, self._ends.get)

    async def _scored(self, state: EndpointState, rollouts: Sequence[Sequence[int]]) -> list[_Score]:
        """Return the scores of rollouts; no tokens have 0, and unknown ones minus infinity."""
        asked = [place for place, rollout in enumerate(rollouts) if rollout]
        scores = [_Score(0.0)] * len(rollouts)
        if not asked:
            return scores
        try:
            told = await self._dialect.score(state, [rollouts[place] for place in asked])
        except EndpointError as error:
            if "out of vocabulary" not in str(error):
                raise
            if len(asked) == 1:
                scores[asked[0]] = _Score(-math.inf)
                return scores
            return [(await self._scored(state, [rollout]))[0] for rollout in rollouts]
        for place, of_tokens in zip(asked, told, strict=True):
            logprobs, texts = of_tokens.logprobs, of_tokens.texts
            scores[place] = _Score(
                math.fsum(logprobs) if -math.inf not in logprobs else -math.inf,
                frozenset(
                    token for token, text in zip(rollouts[place], texts, strict=True) if looks_special(text.strip())
                ),
            )
        return scores
