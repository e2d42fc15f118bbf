"""A model in a Ray actor as a backend: calls become actor calls, states become values with a name in the actor."""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from backends._ray_replica import RESTART_SECONDS, Description, Failure, Origin, Parcel, Value
from backends.base import Backend, Capabilities, Completion, Prompt, SamplingParams, State
from backends.contract import BackendContext, check_budget, check_continues, check_counts, check_prompt, own_state
from backends.errors import BackendClosedError, BackendError, EndpointError
from backends.service import Service
from backends.tokenization import Tokenization


class _Handle:
    """The name of a state in the actor, for as long as a client's state has it."""

    __slots__ = ("__weakref__", "key")

    def __init__(self, key: int) -> None:
        self.key = key


@dataclass(frozen=True, kw_only=True)
class _ActorState(Value):
    origin: Origin = field(repr=False)
    handle: _Handle = field(repr=False, compare=False)
    parent: int | None = field(default=None, repr=False, compare=False)


class _Bin:
    """Names of states that no client has any more; the actor is told in batches.

    `drop` is called by the garbage collector, in whatever thread and amid whatever is going on there, so it leaves
    talking to Ray to the event loop.
    """

    def __init__(self, actor: Any) -> None:
        """Nothing is thrown away yet."""
        self.loop: asyncio.AbstractEventLoop | None = None
        self._actor = actor
        self._keys: deque[int] = deque()
        self._awaited = False
        self._closed = False

    def drop(self, key: int) -> None:
        """Have the actor told soon."""
        if self._closed:
            return
        self._keys.append(key)
        if self.loop is not None and not self._awaited:
            self._awaited = True
            try:
                self.loop.call_soon_threadsafe(self.empty)
            except RuntimeError:  # The loop is closed; the next call tells the actor.
                self.loop = None

    def empty(self) -> None:
        """Tell the actor."""
        self._awaited = False
        keys = []
        while self._keys:
            keys.append(self._keys.popleft())
        if keys and not self._closed and ray.is_initialized():
            self._actor.release.options(num_returns=0).remote(keys)

    def close(self) -> None:
        """Tell the actor nothing any more."""
        self._closed = True
        self._keys.clear()


class ActorBackend(BackendContext):
    """The model of one `backends._ray_replica.Replica`.

    Cancelling a call cancels it in the actor. A call that Ray cannot do, because the actor or its node is gone, raises
    `EndpointError`; what the model itself raises comes back with its own type.

    Args:
        actor: Handle of the actor, which this backend owns.
        description: What the model is.
    """

    def __init__(self, actor: Any, description: Description) -> None:
        """Ask for nothing yet."""
        self._actor = actor
        self._description = description
        self._keys = itertools.count()
        self._bin = _Bin(actor)
        self._closed = False

    @property
    def name(self) -> str:
        """The model's name."""
        return self._description.name

    @property
    def service(self) -> Service:
        """Ray."""
        return Service(provider="ray", model=self.name)

    @property
    def capabilities(self) -> Capabilities:
        """What the model can do."""
        return self._description.capabilities

    @property
    def tokenization(self) -> Tokenization | None:
        """What its tokens mean."""
        return self._description.tokenization

    async def begin(self, prompt: Prompt, *, max_tokens: int, params: SamplingParams) -> State:
        """Return the empty response to a prompt; see `backends.Backend.begin`."""
        check_prompt(prompt)
        check_budget(max_tokens)
        origin = Origin.of(prompt, max_tokens, params)
        handle = self._handle()
        return _state(await self._ask("begin", handle.key, origin), origin, handle)

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        """Draw n successors of a state; see `backends.Backend.extend`."""
        own = _own(state)
        check_counts(n, tokens)
        # A call that fails or is cancelled lets go of the names, and so of what the actor may have drawn.
        handles = [self._handle() for _ in range(n)]
        drawn = await self._ask("extend", _parcel(own), [handle.key for handle in handles], tokens, seed)
        return [_state(value, own.origin, handle) for value, handle in zip(drawn, handles, strict=True)]

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        """Complete each state n times; see `backends.Backend.rollout`."""
        parcels = [_parcel(_own(state)) for state in states]
        check_counts(n)
        groups: list[list[Completion]] = await self._ask("rollout", parcels, n, seed)
        return groups

    def adopt(self, state: State, others: Sequence[State]) -> list[State]:
        """Return states for partial responses that another backend has drawn; the actor makes them when they are used.

        Raises:
            BackendError: A state does not continue ``state``.
        """
        own = _own(state)
        adopted: list[State] = []
        for other in others:
            check_continues(own, other)
            value = replace(Value.of(other), confidence=None, prompt_tokens=own.prompt_tokens)
            adopted.append(_state(value, own.origin, self._handle(), parent=own.handle.key))
        return adopted

    async def score(self, states: Sequence[State], completions: Sequence[Sequence[Completion]]) -> list[list[float]]:
        """Return the log-probabilities of completions; see `backends.Backend.score`."""
        parcels = [_parcel(_own(state)) for state in states]
        scores: list[list[float]] = await self._ask("score", parcels, [list(group) for group in completions])
        return scores

    async def kept(self) -> int:
        """Return how many states the actor keeps at present."""
        count: int = await self._ask("kept")
        return count

    async def aclose(self) -> None:
        """End the actor; what is under way fails."""
        if not self._closed:
            self._closed = True
            self._bin.close()
            if ray.is_initialized():
                ray.kill(self._actor)

    def _handle(self) -> _Handle:
        handle = _Handle(next(self._keys))
        weakref.finalize(handle, self._bin.drop, handle.key).atexit = False
        return handle

    async def _ask(self, method: str, *arguments: Any) -> Any:
        """Have the actor do something; cancelling this cancels it there."""
        self._check_open()
        self._bin.loop = asyncio.get_running_loop()
        try:
            self._bin.empty()
            answer = self._actor.call.remote(method, *arguments)
            try:
                value = await answer
            except asyncio.CancelledError:
                if ray.is_initialized():  # Otherwise that would start a cluster.
                    with suppress(RayError):  # The actor is gone, and the call with it.
                        ray.cancel(answer)
                raise
        except RayTaskError as error:
            raise BackendError(f"{method} failed in a replica of {self.name}: {error.cause or error}") from error
        except RayError as error:
            self._check_open()
            # Ray is starting an actor again that it calls unavailable; one that died stays dead.
            raise EndpointError(
                f"{method} failed, a replica of {self.name} is gone: {error}",
                retryable=True,
                retry_after=RESTART_SECONDS if isinstance(error, ActorUnavailableError) else None,
            ) from error
        if isinstance(value, Failure):
            raise value.error
        return value

    def _check_open(self) -> None:
        if self._closed:
            raise BackendClosedError(f"the replica of {self.name} is closed")


def _own(state: State) -> _ActorState:
    return own_state(state, _ActorState, "a Ray actor")


def _state(value: Value, origin: Origin, handle: _Handle, *, parent: int | None = None) -> _ActorState:
    shown = {entry.name: getattr(value, entry.name) for entry in fields(Value)}
    return _ActorState(**shown, origin=origin, handle=handle, parent=parent)


def _parcel(state: _ActorState) -> Parcel:
    return Parcel(state.handle.key, Value.of(state), state.origin, state.parent)


_: type[Backend] = ActorBackend
