"""What runs inside a Ray actor: one model, and the states that clients have handles of."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from backends.base import Backend, Capabilities, Completion, Prompt, SamplingParams, State
from backends.catalog import load
from backends.errors import BackendError, EndpointError, PromptError
from backends.tokenization import Tokenization

RESTART_SECONDS = 1.0
"""How soon (seconds) a replica that is being started again may be asked again. That an error names a time keeps a pool
from waiting longer with each try."""


class StateError(PromptError):
    """The model cannot go on from a state; no replica of it could."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a response began with. Chat messages are pairs of keys and texts, so that it can be compared."""

    prompt: str | tuple[tuple[tuple[str, str], ...], ...]
    max_tokens: int
    params: SamplingParams

    @classmethod
    def of(cls, prompt: Prompt, max_tokens: int, params: SamplingParams) -> Origin:
        """Return the origin of a response."""
        frozen = prompt if isinstance(prompt, str) else tuple(tuple(message.items()) for message in prompt)
        return cls(frozen, max_tokens, params)

    async def begin(self, backend: Backend) -> State:
        """Return the empty response of a model."""
        prompt = self.prompt if isinstance(self.prompt, str) else [dict(message) for message in self.prompt]
        return await backend.begin(prompt, max_tokens=self.max_tokens, params=self.params)


@dataclass(frozen=True, kw_only=True)
class Value(State):
    """What everybody may know of a state; some of it is no field of others."""

    prompt_tokens: int | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, state: State) -> Self:
        """Return the value of a state."""
        return cls(**{entry.name: getattr(state, entry.name) for entry in fields(Value)})


@dataclass(frozen=True, slots=True)
class Parcel:
    """A state as it travels: its name, and what is needed to make it again where nobody knows it.

    Attributes:
        key: Its name, given by the client.
        value: What everybody may know of it.
        origin: What its response began with.
        parent: Name of a state that it continues, where it was adopted.
    """

    key: int
    value: State
    origin: Origin
    parent: int | None


@dataclass(frozen=True, slots=True)
class Description:
    """What a client has to know of the model."""

    name: str
    capabilities: Capabilities
    tokenization: Tokenization | None


@dataclass(frozen=True, slots=True)
class Failure:
    """A typed error as an answer: it reaches the client as it is, and not as one of Ray's."""

    error: BackendError


class Replica:
    """One model in a process of its own.

    Its states stay here, with their caches; clients have values and names of them. A state that is not known, because
    it was adopted, forgotten, or lost with an earlier process, is made again from its tokens.

    Args:
        name: As for `backends.load`.
        options: As for `backends.load`.
        max_states: Most states to keep; the one that was not used for longest goes first.
    """

    def __init__(self, name: str, options: Mapping[str, Any], *, max_states: int) -> None:
        """Load nothing yet: what goes wrong then is to reach the client with its type."""
        self._name = name
        self._options = dict(options)
        self._max_states = max_states
        self._states: OrderedDict[int, State] = OrderedDict()
        self._loading: asyncio.Task[Backend] | None = None

    async def call(self, method: str, *arguments: Any) -> Any:
        """Do one of the calls below; an error of the package is returned as a `Failure`."""
        try:
            return await getattr(self, method)(*arguments)
        except BackendError as error:
            return Failure(error)

    async def release(self, keys: Sequence[int]) -> None:
        """Forget states, and with them their caches."""
        for key in keys:
            self._states.pop(key, None)

    async def kept(self) -> int:
        """Return how many states are kept."""
        return len(self._states)

    async def describe(self) -> Description:
        """Load the model, if it is not, and tell what it is."""
        backend = await asyncio.shield(self._load())
        return Description(backend.name, backend.capabilities, backend.tokenization)

    async def begin(self, key: int, origin: Origin) -> State:
        """Begin a response."""
        return self._keep(key, await origin.begin(self._model()))

    async def extend(self, parcel: Parcel, keys: Sequence[int], tokens: int, seed: int) -> list[State]:
        """Draw successors of a state; there is a key for each."""
        backend = self._model()
        (state,) = await self._known(backend, [parcel])
        drawn = await backend.extend(state, len(keys), tokens=tokens, seed=seed)
        return [self._keep(key, new) for key, new in zip(keys, drawn, strict=True)]

    async def rollout(self, parcels: Sequence[Parcel], n: int, seed: int) -> list[list[Completion]]:
        """Complete states."""
        backend = self._model()
        return await backend.rollout(await self._known(backend, parcels), n, seed=seed)

    async def score(self, parcels: Sequence[Parcel], completions: Sequence[Sequence[Completion]]) -> list[list[float]]:
        """Return the log-probabilities of completions (nats)."""
        backend = self._model()
        return await backend.score(await self._known(backend, parcels), completions)

    def _load(self) -> asyncio.Task[Backend]:
        """Return the task that loads the model; one that failed is started again."""
        task = self._loading
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.create_task(asyncio.to_thread(load, self._name, **self._options))
            self._loading = task
        return task

    def _model(self) -> Backend:
        """Return the model.

        A replica that Ray has started again has none yet. Others can do the call before it is loaded.
        """
        task = self._load()
        if not task.done():
            raise EndpointError(
                f"the replica has been started again and is loading {self._name}",
                retryable=True,
                retry_after=RESTART_SECONDS,
            )
        return task.result()

    def _keep(self, key: int, state: State) -> State:
        """Keep a state by its name; return what everybody may know of it."""
        self._states[key] = state
        self._states.move_to_end(key)
        while len(self._states) > self._max_states:
            self._states.popitem(last=False)
        return Value.of(state)

    async def _known(self, backend: Backend, parcels: Sequence[Parcel]) -> list[State]:
        """Return the states of parcels; those that are not known are made again."""
        found = {parcel.key: self._states[parcel.key] for parcel in parcels if parcel.key in self._states}
        for key in found:
            self._states.move_to_end(key)
        starts: dict[Origin, State] = {}
        for parcel in parcels:
            if parcel.key in found:
                continue
            # The parent's cache is worth having: the tokens up to there are not computed again.
            base = None if parcel.parent is None else self._states.get(parcel.parent)
            if base is None and parcel.origin not in starts:
                starts[parcel.origin] = await parcel.origin.begin(backend)
            found[parcel.key] = self._made(backend, base or starts[parcel.origin], parcel)
        return [found[parcel.key] for parcel in parcels]

    def _made(self, backend: Backend, base: State, parcel: Parcel) -> State:
        value = parcel.value
        state = base
        if value.num_tokens or value.finished:
            try:
                (state,) = backend.adopt(base, [value])
            except BackendError as error:
                raise StateError(str(error)) from error
            if value.confidence is not None:  # What is adopted has none; these tokens were this very model's.
                state = replace(state, confidence=value.confidence)
        self._keep(parcel.key, state)
        return state
