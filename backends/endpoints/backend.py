"""`EndpointBackend`: the backend contract over a server, whatever dialect it speaks."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from backends.base import Backend, Capabilities, Completion, Confidence, FinishReason, Prompt, SamplingParams, State
from backends.contract import (
    BackendContext,
    as_completion,
    check_budget,
    check_continues,
    check_counts,
    check_prompt,
    own_state,
    row_seeds,
)
from backends.endpoints.dialects import Dialect, Draw, EndpointState
from backends.endpoints.scoring import Scoring
from backends.errors import BackendError, CapabilityError, ContextLengthError, EndpointError, UnusableDrawError
from backends.limits import Limiter
from backends.service import Service
from backends.text import cut, settled, without_halves
from backends.tokenization import Tokenization

_log = logging.getLogger(__name__)

_begun = itertools.count()
"""Numbers the responses of this process. Requests of those begun earlier go first: of many runs at once some end while
others have hardly begun, instead of all being under way, with all that they hold, until nearly the end."""


class _Request(NamedTuple):
    """A request for rows of one state."""

    state: EndpointState
    rows: int
    tokens: int
    seed: int
    logprobs: bool


class EndpointBackend(BackendContext):
    """A model behind a server.

    States are plain values, so a response can be continued on any server of the model. What the server cannot do is
    said by `capabilities`.

    Args:
        dialect: How to ask the server.
        name: What to call the model; no credentials.
        limiter: Most requests at the same time. A request keeps its place while it waits to be tried again, so a server
            that refuses some gets fewer.
    """

    def __init__(self, dialect: Dialect, *, name: str, limiter: Limiter) -> None:
        """Send nothing yet."""
        self._dialect = dialect
        self._name = name
        self._limiter = limiter
        self._scoring = Scoring(dialect, name=name, limiter=limiter)

    def __repr__(self) -> str:
        """Name the model; the connection, and with it the key, stays out."""
        return f"{type(self).__name__}({self._name!r})"

    @property
    def name(self) -> str:
        """The model's name."""
        return self._name

    @property
    def service(self) -> Service:
        """Who serves the model."""
        return self._dialect.service

    @property
    def limiter(self) -> Limiter:
        """The places for its requests."""
        return self._limiter

    @property
    def capabilities(self) -> Capabilities:
        """What was found out about the server."""
        return self._dialect.capabilities

    @property
    def tokenization(self) -> Tokenization | None:
        """What the model's tokens mean, where the server tells."""
        return self._dialect.tokenization

    async def begin(self, prompt: Prompt, *, max_tokens: int, params: SamplingParams) -> State:
        """Return the empty response to a prompt; see `backends.Backend.begin`.

        Raises:
            CapabilityError: The server would not follow the sampling parameters.
            EndpointError: The server cannot be reached.
            QueueFullError: As many wait already to begin as may; what was begun is never refused.
        """
        self._dialect.check_open()
        check_prompt(prompt)
        check_budget(max_tokens)
        self._dialect.check(params)
        if params.confidence and not self.capabilities.confidence:
            raise CapabilityError(f"{self._name} gives no log-probabilities, so it cannot tell its confidence")
        if params.confidence and not (params.plain or self._dialect.raw_logprobs):
            raise CapabilityError(
                f"{self._name} gives log-probabilities of what is sampled, so its own confidence is known at "
                "temperature 1 without truncation only; with vLLM, start the server without --logprobs-mode"
            )
        begun = next(_begun)
        async with self._limiter.place(rank=begun):
            encoded = await self._dialect.encode(prompt)
        # A server scores a response of the whole budget only where it could draw one token more.
        reserved = int(self._scoring.possible(params))
        if self._dialect.context is not None and len(encoded) + max_tokens + reserved > self._dialect.context:
            raise ContextLengthError(
                f"the prompt has {len(encoded)} tokens and max_tokens is {max_tokens}; "
                f"{self._name} allows {self._dialect.context} together"
                + (", of which one is needed for scoring" if reserved else "")
            )
        return EndpointState(
            prompt=encoded,
            params=params,
            max_tokens=max_tokens,
            begun=begun,
            confidence=Confidence(entropy=None, self_certainty=None) if params.confidence else None,
        )

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        """Draw n successors of a state; see `backends.Backend.extend`.

        Raises:
            EndpointError: A request failed for good.
            UnusableDrawError: What it drew is no continuation, such as one that a content filter has ended: to leave
                that one out would make the others more likely than they are.
            CapabilityError: The server has a limit of its own, and draws fewer tokens than it was asked for.
        """
        self._dialect.check_open()
        own = _own(state)
        check_counts(n, tokens)
        if own.finished:
            return [own] * n
        left = own.max_tokens - own.num_tokens
        if tokens < left and not self.capabilities.continue_prefix:
            raise CapabilityError(f"{self._name} cannot continue a prefix, so a response can only be drawn as a whole")
        budget = min(tokens, left)
        requests = self._requests(own, n, budget, row_seeds(seed, n), logprobs=own.params.confidence)
        outcomes = await self._limiter.map(self._draw_or_fail, requests, rank=own.begun)
        draws = [draw for outcome in outcomes if not isinstance(outcome, EndpointError) for draw in outcome]
        # First: after a request that failed, all of them would be drawn again, until none is such a one.
        if errors := _errors(draws):
            raise UnusableDrawError(f"{self._name} gave a candidate that cannot be used: {errors[0]}")
        if failed := next((outcome for outcome in outcomes if isinstance(outcome, EndpointError)), None):
            raise failed
        successors = [self._successor(own, draw) for draw in draws]
        shared: dict[EndpointState, EndpointState] = {}
        return [shared.setdefault(state, state) for state in successors]

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        """Complete each state n times; see `backends.Backend.rollout`.

        What fails for good, a request or a row of one, gives completions marked as failed. It raises where all requests
        fail or all rows are no answers; not where some are none and the requests of the others failed, because
        whoever draws again what failed is not to draw those again.

        Raises:
            EndpointError: All requests failed.
            UnusableDrawError: Everything that was drawn is no answer.
            CapabilityError: The server has a limit of its own, and draws fewer tokens than it was asked for.
        """
        self._dialect.check_open()
        check_counts(n)
        own = [_own(state) for state in states]
        requests = [
            request
            for index, state in enumerate(own)
            if not state.finished
            for request in self._requests(
                state,
                n,
                state.max_tokens - state.num_tokens,
                row_seeds(seed, n, index),
                logprobs=state.params.confidence or (state.params.logprobs and self._knows_logprobs(state.params)),
            )
        ]
        outcomes = await self._settled(requests, rank=_rank(own))
        rows = iter(
            [
                completion
                for request, outcome in zip(requests, outcomes, strict=True)
                for completion in self._completions(request, outcome)
            ]
        )
        return [[as_completion(state)] * n if state.finished else [next(rows) for _ in range(n)] for state in own]

    def adopt(self, state: State, others: Sequence[State]) -> list[State]:
        """Return this backend's states for those of another; see `backends.Backend.adopt`.

        States of another server of the same model are taken as they are; those of other backends need token ids.
        """
        own = _own(state)
        adopted: list[State] = []
        for other in others:
            ids = other.token_ids
            if isinstance(other, EndpointState) and other.prompt == own.prompt and other.raw is not None:
                if not other.raw.startswith(own.raw or ""):
                    raise BackendError(f"the text {other.raw!r} does not continue the state with {own.raw!r}")
                adopted.append(
                    replace(other, params=own.params, max_tokens=own.max_tokens, begun=own.begun, confidence=None)
                )
                continue
            if self.tokenization is None:
                raise CapabilityError(f"{self._name} takes no tokens, so it cannot go on from another model's state")
            check_continues(own, other)
            adopted.append(
                replace(
                    own,
                    text=other.text,
                    num_tokens=len(ids),
                    token_ids=ids,
                    finish_reason=other.finish_reason,
                    raw=None if ids else "",
                    confidence=None,
                )
            )
        return adopted

    async def score(self, states: Sequence[State], completions: Sequence[Sequence[Completion]]) -> list[list[float]]:
        """Return the log-probabilities of completions; see `backends.Backend.score`.

        Raises:
            CapabilityError: The server does not score, or not under these sampling parameters; or responses of the
                model that drew the completions end otherwise than this one's.
        """
        self._dialect.check_open()
        own = [_own(state) for state in states]
        return await self._scoring.score(own, completions, rank=_rank(own))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._dialect.aclose()

    def _requests(
        self, state: EndpointState, n: int, tokens: int, seeds: Sequence[int], *, logprobs: bool
    ) -> list[_Request]:
        """Return the requests that draw n rows; the first row's seed is the request's.

        Greedy rows are all the same, so one request does. Seeds are cut to 53 bits, which every JSON reader keeps, and
        to which a server can add the row's number.
        """
        most = n if state.params.greedy else self._dialect.most_rows
        return [
            _Request(state, min(most, n - first), tokens, seeds[first] >> 11, logprobs) for first in range(0, n, most)
        ]

    async def _draw(self, request: _Request) -> list[Draw]:
        state, rows, tokens, seed, logprobs = request
        # vLLM refuses to draw several greedy rows.
        copies = rows if state.params.greedy else 1
        draws = await self._dialect.draw(state, rows // copies, tokens=tokens, seed=seed, logprobs=logprobs)
        return draws * copies

    async def _draw_or_fail(self, request: _Request) -> list[Draw] | EndpointError:
        """Draw, or return how the request failed."""
        try:
            return await self._draw(request)
        except EndpointError as error:
            return error

    def _knows_logprobs(self, params: SamplingParams) -> bool:
        """Whether the server tells log-probabilities under these parameters."""
        return self.capabilities.logprobs and (params.plain or self.capabilities.tempered_logprobs)

    def _logprob(self, params: SamplingParams, draw: Draw) -> float | None:
        """Return the log-probability of a rollout under what was sampled from, where it is known."""
        if not self._knows_logprobs(params):
            return None
        if params.greedy:  # There is no other; servers tell the plain one's even where they tell sampled ones.
            return 0.0
        return None if draw.logprobs is None else math.fsum(draw.logprobs)

    async def _settled(self, requests: Sequence[_Request], *, rank: int) -> list[list[Draw] | EndpointError]:
        """Send requests at the same time; what failed is left as it is, unless all requests did, or all rows."""
        outcomes = await self._limiter.map(self._draw_or_fail, requests, rank=rank)
        # As text: a handler that keeps records would keep an error's traceback, and all that hangs on its frames.
        failed = [
            error
            for request, outcome in zip(requests, outcomes, strict=True)
            for error in ([str(outcome)] * request.rows if isinstance(outcome, EndpointError) else _errors(outcome))
        ]
        count = sum(request.rows for request in requests)
        lost = [outcome for outcome in outcomes if isinstance(outcome, EndpointError)]
        if lost and len(lost) == len(outcomes):
            raise lost[0]
        if failed and len(failed) == count and not lost:
            raise UnusableDrawError(f"{self._name} gave no usable rollout: {failed[0]}")
        if failed:
            _log.warning("%d of %d rollouts failed: %s", len(failed), count, failed[0])
        return outcomes

    def _successor(self, state: EndpointState, draw: Draw) -> EndpointState:
        num_tokens = state.num_tokens + draw.num_tokens
        stop = state.params.stop
        reason: FinishReason | None = None
        if draw.stopped:
            reason = "stop"
        elif num_tokens >= state.max_tokens:
            reason = "length"
        return replace(
            state,
            text=settled(draw.raw, stop) if reason is None else cut(draw.raw, stop),
            num_tokens=num_tokens,
            token_ids=state.token_ids + draw.token_ids,
            finish_reason=reason,
            raw=draw.raw,
            split=draw.split,
            confidence=_confidence(state, draw),
        )

    def _completions(self, request: _Request, outcome: list[Draw] | EndpointError) -> list[Completion]:
        state = request.state
        if isinstance(outcome, EndpointError):
            said = without_halves(str(outcome))
            return [Completion(text=state.text, finish_reason="error", error=said)] * request.rows
        return [self._completion(state, draw) for draw in outcome]

    def _completion(self, state: EndpointState, draw: Draw) -> Completion:
        if draw.error is not None:
            return Completion(text=state.text, finish_reason="error", error=draw.error, final=True)
        return Completion(
            text=cut(draw.raw, state.params.stop),
            token_ids=draw.token_ids,
            logprob=self._logprob(state.params, draw),
            finish_reason="stop" if draw.stopped else "length",
            confidence=_confidence(state, draw),
            token_count=None if draw.token_ids else draw.num_tokens,
        )


def _own(state: State) -> EndpointState:
    return own_state(state, EndpointState, "an endpoint")


def _rank(states: Sequence[EndpointState]) -> int:
    """Return the number of the response that was begun first among those of some states."""
    return min((state.begun for state in states), default=0)


def _errors(draws: Sequence[Draw]) -> list[str]:
    """Return why some draws are no continuations."""
    return [draw.error for draw in draws if draw.error is not None]


def _confidence(state: EndpointState, draw: Draw) -> Confidence | None:
    if state.confidence is None or draw.logprobs is None:
        return None
    own = Confidence(num_tokens=draw.num_tokens, logprob=math.fsum(draw.logprobs), entropy=None, self_certainty=None)
    return state.confidence + own


_: type[Backend] = EndpointBackend
