"""Backends for tests that fail when they are told to: they die, hang, lose rows, and come back."""

from __future__ import annotations

import asyncio
import dataclasses
import weakref
from collections.abc import Callable, Sequence

from backends import (
    Backend,
    BackendContext,
    BackendError,
    Capabilities,
    Completion,
    Prompt,
    SamplingParams,
    State,
    Tokenization,
)

Fault = BaseException | str | None
"""An error to raise, "hang" for a call that never returns, "lose" for rollouts whose rows fail, "filter" for rollouts
some of whose rows are said to be no answers, None for no fault."""


class FaultyBackend(BackendContext):
    """Passes everything on to a backend that works, except for the calls that are to fail.

    It serves only states that it has made itself, as an endpoint on another machine would.

    Args:
        inner: The backend that works.
        plan: Given the number of a call (0 is the first) and its name, tells what is to go wrong.
        name: What to call it; by default as the backend.
    """

    def __init__(
        self, inner: Backend, plan: Callable[[int, str], Fault] = lambda number, call: None, *, name: str | None = None
    ) -> None:
        self.inner = inner
        self.plan = plan
        self.dead: BaseException | None = None
        """What every call raises, once it is set."""
        self.calls: list[str] = []
        self.rows = 0
        """Rows of all calls so far that were not refused."""
        self.under_way = 0
        self.hanging = asyncio.Event()
        """Set once a call hangs."""
        self.let_go = asyncio.Event()
        """Set by the test, to let those that hang go on."""
        self.closed = 0
        self.close_error: BaseException | None = None
        self.changed_capabilities: Capabilities | None = None
        self.changed_tokenization: Tokenization | None = inner.tokenization
        self.states: weakref.WeakValueDictionary[int, State] = weakref.WeakValueDictionary()
        self._name = name or inner.name

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return self.changed_capabilities or self.inner.capabilities

    @property
    def tokenization(self) -> Tokenization | None:
        return self.changed_tokenization

    def die(self, text: str = "connection refused") -> None:
        self.dead = BackendError(text)

    def recover(self) -> None:
        self.dead = None
        self.plan = lambda number, call: None

    async def begin(self, prompt: Prompt, *, max_tokens: int, params: SamplingParams) -> State:
        await self._meet("begin", [], 1)
        return self._made(await self.inner.begin(prompt, max_tokens=max_tokens, params=params))

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        await self._meet("extend", [state], n)
        return [self._made(new) for new in await self.inner.extend(state, n, tokens=tokens, seed=seed)]

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        fault = await self._meet("rollout", states, n * len(states))
        drawn = await self.inner.rollout(states, n, seed=seed)
        if fault == "lose":  # The first row of each state, as after a connection that broke.
            return [[_lost(group[0]), *group[1:]] for group in drawn]
        if fault == "lose last":
            return [[*group[:-1], _lost(group[-1])] for group in drawn]
        if fault == "filter":
            return [[dataclasses.replace(_lost(group[0]), final=True), *group[1:]] for group in drawn]
        return drawn

    def adopt(self, state: State, others: Sequence[State]) -> list[State]:
        self._check([state])
        return [self._made(new) for new in self.inner.adopt(state, others)]

    async def score(self, states: Sequence[State], completions: Sequence[Sequence[Completion]]) -> list[list[float]]:
        await self._meet("score", states, sum(map(len, completions)))
        return await self.inner.score(states, completions)

    async def aclose(self) -> None:
        if self.close_error is not None:
            self.closed += 1
            raise self.close_error
        for _ in range(9):  # Closing takes a while where it works.
            await asyncio.sleep(0)
        await self.inner.aclose()
        self.closed += 1

    async def _meet(self, call: str, states: Sequence[State], rows: int) -> Fault:
        number = len(self.calls)
        self.calls.append(call)
        self.under_way += 1
        try:
            await asyncio.sleep(0)  # Others get to run, as they do while a request is on its way.
            fault = self.dead or self.plan(number, call)
            if isinstance(fault, BaseException):
                raise fault
            if fault == "hang":
                self.hanging.set()
                await self.let_go.wait()
            self._check(states)
            self.rows += rows
            return fault
        finally:
            self.under_way -= 1

    def _made(self, state: State) -> State:
        self.states[id(state)] = state
        return state

    def _check(self, states: Sequence[State]) -> None:
        for state in states:
            assert self.states.get(id(state)) is state or state.confidence is not None, "a state of another member"


def _lost(completion: Completion) -> Completion:
    return dataclasses.replace(completion, token_ids=(), logprob=None, finish_reason="error", error="connection lost")
