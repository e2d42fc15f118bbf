"""A backend around another one, which passes everything on: the base of retries, limits, metering and tracing.

Wrappers may be stacked in any order. Usual is ``Traced(Metered(Retrying(Limited(backend, 8))))``: a call that waits for
its next try holds no place, and is one call to those outside. A `Limiter` and a `TokenBudget` that several stacks share
must be nested in the same order in all of them, the budget outside: otherwise a call with a place may wait for tokens
that one without has set aside. The ``max_concurrency`` of an endpoint is inside already.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Generic, Self, TypeVar

from backends.base import Backend, Capabilities, Completion, Prompt, SamplingParams, State
from backends.tokenization import Tokenization

T = TypeVar("T")


class BackendWrapper:
    """Passes every call on; a wrapper overrides those that it has something to do with.

    States go through unchanged, so a wrapped backend and the bare one can go on from each other's.

    Args:
        inner: The backend that does the work. Closing the wrapper closes it.
    """

    def __init__(self, inner: Backend) -> None:
        """Keep the backend."""
        self.inner = inner

    @property
    def parts(self) -> tuple[Backend, ...]:
        """The backend that is wrapped; see `layers`."""
        return (self.inner,)

    @property
    def name(self) -> str:
        """The model's name; see `Backend.name`."""
        return self.inner.name

    @property
    def capabilities(self) -> Capabilities:
        """What the backend can do; see `Backend.capabilities`."""
        return self.inner.capabilities

    @property
    def tokenization(self) -> Tokenization | None:
        """What tokens mean to the model; see `Backend.tokenization`."""
        return self.inner.tokenization

    async def begin(self, prompt: Prompt, *, max_tokens: int, params: SamplingParams) -> State:
        """Return the empty response to a prompt; see `Backend.begin`."""
        return await self.inner.begin(prompt, max_tokens=max_tokens, params=params)

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        """Draw n successors of a state; see `Backend.extend`."""
        return await self.inner.extend(state, n, tokens=tokens, seed=seed)

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        """Complete each state n times; see `Backend.rollout`."""
        return await self.inner.rollout(states, n, seed=seed)

    def adopt(self, state: State, others: Sequence[State]) -> list[State]:
        """Return states for partial responses that another backend has drawn; see `Backend.adopt`."""
        return self.inner.adopt(state, others)

    async def score(self, states: Sequence[State], completions: Sequence[Sequence[Completion]]) -> list[list[float]]:
        """Return the log-probabilities of completions (nats); see `Backend.score`."""
        return await self.inner.score(states, completions)

    async def aclose(self) -> None:
        """Close the backend; see `Backend.aclose`."""
        await self.inner.aclose()

    async def __aenter__(self) -> Self:
        """Enter the backend; return the wrapper."""
        await self.inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the backend, which closes it."""
        await self.inner.__aexit__(kind, error, trace)

    def __repr__(self) -> str:
        """Name the wrapper and what it wraps, as it is nested."""
        return f"{type(self).__name__}({self.inner!r})"


def layers(backend: Backend) -> Iterator[Backend]:
    """Yield a backend and all that its calls may go through: what it lists as its ``parts``, and theirs in turn."""
    yield backend
    for part in getattr(backend, "parts", ()):
        yield from layers(part)


class StateNotes(Generic[T]):
    """What a wrapper knows about states, which tell little themselves; kept as long as they live.

    States are told apart as objects, because equal ones may be of runs with different settings.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._notes: dict[int, tuple[weakref.ref[State], T]] = {}

    def put(self, states: Iterable[State], note: T) -> None:
        """Keep the note for each of the states."""
        for state in states:
            # When a state is gone, so is its note: before its id can be that of another object.
            self._notes[id(state)] = (weakref.ref(state, partial(self._notes.pop, id(state))), note)

    def get(self, state: State) -> T | None:
        """Return the note of a state, None where there is none."""
        found = self._notes.get(id(state))
        return None if found is None else found[1]

    def __len__(self) -> int:
        """Return the number of states with a note."""
        return len(self._notes)


_: type[Backend] = BackendWrapper
