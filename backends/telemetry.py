"""OpenTelemetry spans for the calls of a backend, after the semantic conventions for generative AI.

Importing this module does not import OpenTelemetry. `Traced` needs its API package; a program that wants to see spans
sets up an SDK.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.base import Backend, Completion, Prompt, SamplingParams, State
from backends.errors import EndpointError, MissingExtraError
from backends.service import service_of
from backends.wrapper import BackendWrapper, StateNotes

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider
    from opentelemetry.util.types import AttributeValue

_OPERATIONS = {"begin": "begin", "extend": "text_completion", "rollout": "text_completion", "score": "score"}
"""Values of ``gen_ai.operation.name``; the conventions have none for beginning and scoring, and allow others."""
_LARGEST = 2**63 - 1
"""Attributes travel as 64-bit integers with a sign; seeds may be larger."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What the calls of a run have in common."""

    max_tokens: int
    params: SamplingParams


class Traced(BackendWrapper):
    """Makes a span of kind CLIENT of each call, such as ``text_completion MODEL`` for `extend` and `rollout`.

    Spans carry the model and who serves it (see `backends.service`), the sampling parameters, what was asked for and
    drawn, and how it ended; ``ets.call`` is the method and ``ets.states`` the number of states that it was given. They
    hold no text: not of prompts, answers or error messages, and not the stop strings, which may be of a prompt. For a
    span that nobody records, nothing is computed.

    Around a pool, the spans do not tell which server was asked; around each of its members, they do.

    Args:
        inner: The backend that does the work.
        provider: ``gen_ai.provider.name``, such as ``openai``; by default what the backend tells, or else its class,
            without "Backend".
        tracer_provider: Where spans go; None for the program's global one.

    Raises:
        MissingExtraError: The OpenTelemetry API is not installed.
    """

    def __init__(
        self, inner: Backend, *, provider: str | None = None, tracer_provider: TracerProvider | None = None
    ) -> None:
        """Get a tracer."""
        super().__init__(inner)
        try:
            from opentelemetry import trace
        except ImportError as error:
            raise MissingExtraError("spans need the OpenTelemetry API: pip install 'ets-agent[telemetry]'") from error
        self._trace = trace
        self._tracer = trace.get_tracer("ets_agent.backends", tracer_provider=tracer_provider)
        service = service_of(inner)
        common: dict[str, AttributeValue] = {
            "gen_ai.provider.name": service.provider if provider is None else provider,
            "gen_ai.request.model": service.model,
        }
        if service.host is not None:
            common["server.address"] = service.host
        if service.port is not None:
            common["server.port"] = service.port
        self._names = {call: f"{operation} {service.model}" for call, operation in _OPERATIONS.items()}
        self._attributes: dict[str, dict[str, AttributeValue]] = {
            call: {**common, "gen_ai.operation.name": operation, "ets.call": call}
            for call, operation in _OPERATIONS.items()
        }
        self._runs: StateNotes[_Run] = StateNotes()
        """Of states whose call was recorded."""

    async def begin(self, prompt: Prompt, *, max_tokens: int, params: SamplingParams) -> State:
        """Return the empty response to a prompt; see `Backend.begin`."""
        with self._span("begin", lambda: _settings(params) | {"gen_ai.request.max_tokens": max_tokens}) as span:
            state = await self.inner.begin(prompt, max_tokens=max_tokens, params=params)
            if span.is_recording():
                self._runs.put([state], _Run(max_tokens, params))
            return state

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        """Draw n successors of a state; see `Backend.extend`."""
        with self._span("extend", lambda: self._request([state], n, seed, tokens)) as span:
            states = await self.inner.extend(state, n, tokens=tokens, seed=seed)
            if span.is_recording():
                self._inherit(state, states)
                span.set_attributes(_input([state]))
                # A candidate that goes on ended for now because it has the tokens that were asked for.
                span.set_attribute("gen_ai.response.finish_reasons", [new.finish_reason or "length" for new in states])
                drawn = sum(new.num_tokens - state.num_tokens for new in states)
                span.set_attribute("gen_ai.usage.output_tokens", drawn)
            return states

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        """Complete each state n times; see `Backend.rollout`."""
        with self._span("rollout", lambda: self._request(states, n, seed, None)) as span:
            groups = await self.inner.rollout(states, n, seed=seed)
            if span.is_recording():
                span.set_attributes(_input(states))
                drawn = [completion for group in groups for completion in group]
                span.set_attribute("gen_ai.response.finish_reasons", [one.finish_reason for one in drawn])
                span.set_attribute("gen_ai.usage.output_tokens", sum(one.num_tokens for one in drawn))
            return groups

    def adopt(self, state: State, others: Sequence[State]) -> list[State]:
        """Return states for partial responses that another backend has drawn; see `Backend.adopt`."""
        states = self.inner.adopt(state, others)
        self._inherit(state, states)
        return states

    async def score(self, states: Sequence[State], completions: Sequence[Sequence[Completion]]) -> list[list[float]]:
        """Return the log-probabilities of completions (nats); see `Backend.score`."""

        def asked() -> dict[str, AttributeValue]:
            scored = [completion for group in completions for completion in group]
            return {
                **self._common(states),
                "ets.completions": len(scored),
                "ets.usage.scoring_tokens": sum(completion.num_tokens for completion in scored),
            }

        with self._span("score", asked):
            return await self.inner.score(states, completions)

    @contextmanager
    def _span(self, call: str, describe: Callable[[], dict[str, AttributeValue]]) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            self._names[call],
            kind=self._trace.SpanKind.CLIENT,
            attributes=self._attributes[call],
            # Messages of errors may quote the prompt.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            if span.is_recording():
                span.set_attributes(describe())
            try:
                yield span
            except BaseException as error:
                if span.is_recording():
                    span.set_attribute("error.type", _error_type(error))
                    span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, type(error).__name__))
                raise

    def _request(self, states: Sequence[State], n: int, seed: int, tokens: int | None) -> dict[str, AttributeValue]:
        """Return what a request for draws asks for; without ``tokens``, up to the end of the response."""
        attributes = self._common(states)
        if tokens is None:
            known = [(self._runs.get(state), state.num_tokens) for state in states if not state.finished]
            tokens = max((run.max_tokens - length for run, length in known if run is not None), default=None)
        if tokens is not None:
            attributes["gen_ai.request.max_tokens"] = tokens
        if n != 1:
            attributes["gen_ai.request.choice.count"] = n
        if seed <= _LARGEST:
            attributes["gen_ai.request.seed"] = seed
        else:
            attributes["ets.seed"] = str(seed)
        return attributes

    def _common(self, states: Sequence[State]) -> dict[str, AttributeValue]:
        run = self._runs.get(states[0]) if states else None
        return {**({} if run is None else _settings(run.params)), "ets.states": len(states)}

    def _inherit(self, state: State, states: Sequence[State]) -> None:
        run = self._runs.get(state)
        if run is not None:
            self._runs.put(states, run)


def _settings(params: SamplingParams) -> dict[str, AttributeValue]:
    """Return the sampling parameters; 0 stands for no top-k, which servers are not asked for either."""
    attributes: dict[str, AttributeValue] = {
        "gen_ai.request.temperature": float(params.temperature),
        "gen_ai.request.top_p": float(params.top_p),
    }
    if params.top_k:
        attributes["gen_ai.request.top_k"] = float(params.top_k)
    return attributes


def _input(states: Sequence[State]) -> dict[str, AttributeValue]:
    """Return how many tokens went in, where that is known: each state's prompt and response so far, once."""
    known = [(state.prompt_tokens, state.num_tokens) for state in states if not state.finished]
    lengths = [prompt + response for prompt, response in known if prompt is not None]
    return {"gen_ai.usage.input_tokens": sum(lengths)} if len(lengths) == len(known) else {}


def _error_type(error: BaseException) -> str:
    """Return the server's status code, or else the class of an error."""
    if isinstance(error, EndpointError) and error.status is not None:
        return str(error.status)
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
