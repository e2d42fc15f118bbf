"""A member of a pool whose server could not be reached when the pool was opened, and which joins once it can be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields, replace

from backends.base import Backend, Capabilities, Completion, Prompt, SamplingParams, State
from backends.concurrency import UnderWay
from backends.contract import BackendContext
from backends.errors import BackendClosedError, BackendError, EndpointError
from backends.service import Service, service_of
from backends.tokenization import Tokenization

_CONNECT_SECONDS = 1.0
"""How soon (seconds) a server that is just being connected to may be asked again."""


class LateBackend(BackendContext):
    """Connects when it is first asked to begin a response; a pool asks when it finds that the member is due.

    Until then it says of itself what the others have in common, because a pool can do what all of its members can. A
    server that turns out to be of another model, or to be able to do less, stays out.

    Args:
        connect: Connects to the server.
        name: What to call it.
        others: What the members that were reached have in common; it is not closed with this one.
    """

    def __init__(self, connect: Callable[[], Awaitable[Backend]], *, name: str, others: Backend) -> None:
        """Ask for nothing yet."""
        self._connect = connect
        self._name = name
        self._others = others
        self._found: Backend | None = None
        self._connecting = False
        self._under_way = UnderWay()
        self._closed = False

    @property
    def name(self) -> str:
        """What it is called; the model and the address."""
        return self._name

    @property
    def parts(self) -> tuple[Backend, ...]:
        """The server's backend, once there is one; see `backends.wrapper.layers`."""
        return () if self._found is None else (self._found,)

    @property
    def service(self) -> Service:
        """Who serves the model: as with the others, but where is not known before it has joined."""
        if self._found is not None:
            return service_of(self._found)
        return replace(service_of(self._others), host=None, port=None)

    @property
    def capabilities(self) -> Capabilities:
        """What it can do, or else what the others can."""
        return (self._found or self._others).capabilities

    @property
    def tokenization(self) -> Tokenization | None:
        """What its tokens mean, or else the others'."""
        return (self._found or self._others).tokenization

    async def begin(self, prompt: Prompt, *, max_tokens: int, params: SamplingParams) -> State:
        """Return the empty response to a prompt; see `backends.Backend.begin`.

        Raises:
            EndpointError: The server cannot be reached.
            BackendClosedError: It was closed before it had joined.
            BackendError: It is no member of this pool.
        """
        if self._found is None:
            self._found = await self._joined()
        return await self._found.begin(prompt, max_tokens=max_tokens, params=params)

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        """Draw n successors of a state; see `backends.Backend.extend`."""
        return await self._server().extend(state, n, tokens=tokens, seed=seed)

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        """Complete each state n times; see `backends.Backend.rollout`."""
        return await self._server().rollout(states, n, seed=seed)

    def adopt(self, state: State, others: Sequence[State]) -> list[State]:
        """Return states for partial responses that another backend has drawn; see `backends.Backend.adopt`."""
        return self._server().adopt(state, others)

    async def score(self, states: Sequence[State], completions: Sequence[Sequence[Completion]]) -> list[list[float]]:
        """Return the log-probabilities of completions; see `backends.Backend.score`."""
        return await self._server().score(states, completions)

    async def aclose(self) -> None:
        """Close the connections, if there are any, and end the attempt to connect, if there is one."""
        self._closed = True
        self._under_way.end()
        if self._found is not None:
            await self._found.aclose()

    def _server(self) -> Backend:
        if self._found is None:
            raise BackendError(f"{self._name} has begun no response yet, so there is none to go on from")
        return self._found

    async def _joined(self) -> Backend:
        """Connect."""
        if self._connecting:  # One call finds out; this one is done sooner elsewhere.
            raise EndpointError(f"{self._name} is being connected to", retryable=True, retry_after=_CONNECT_SECONDS)
        self._connecting = True
        try:
            async with asyncio.timeout(None) as limit:
                with self._under_way.noted(limit):
                    self._check_open()
                    found = await self._connect()
        except TimeoutError:
            self._check_open()
            raise
        except (BackendClosedError, EndpointError):
            raise
        except BackendError as error:  # Not with its type, which may say that it is the request's fault.
            raise BackendError(f"{self._name} cannot join the pool: {error}") from error
        finally:
            self._connecting = False
        try:
            self._check_open()
            self._check_like(found)
        except BaseException:
            await found.aclose()
            raise
        return found

    def _check_open(self) -> None:
        if self._closed:
            raise BackendClosedError(f"{self._name} is closed")

    def _check_like(self, found: Backend) -> None:
        own, common = found.capabilities, self._others.capabilities
        lacks = [
            entry.name for entry in fields(Capabilities) if getattr(common, entry.name) and not getattr(own, entry.name)
        ]
        if lacks:
            raise BackendError(f"{self._name} cannot join the pool: it lacks {', '.join(lacks)}, which the others have")
        tokens = self._others.tokenization
        if tokens is None:
            return
        difference = "its tokens are not known" if found.tokenization is None else tokens.difference(found.tokenization)
        if difference:
            raise BackendError(
                f"{self._name} cannot join the pool, it is not the same model as the others: {difference}"
            )


_: type[Backend] = LateBackend
