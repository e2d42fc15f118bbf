"""Counts what is asked of a backend, in calls and tokens, and ends it where a budget is spent."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from backends.base import Backend, Completion, Prompt, SamplingParams, State
from backends.contract import is_count
from backends.errors import BackendError, BudgetExceededError
from backends.limits import Turnstile
from backends.wrapper import BackendWrapper, StateNotes, layers

T = TypeVar("T")
_Kind = Literal["candidate_tokens", "rollout_tokens", "scoring_tokens"]


@dataclass(frozen=True, kw_only=True)
class BackendUsage:
    """What was asked of a backend so far.

    Attributes:
        calls: Calls of `begin`, `extend`, `rollout` and `score`, failed and cancelled ones included.
        candidate_tokens: Tokens drawn by `extend`.
        rollout_tokens: Tokens drawn by `rollout`.
        scoring_tokens: Tokens scored by `score`.
    """

    calls: int = 0
    candidate_tokens: int = 0
    rollout_tokens: int = 0
    scoring_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """All tokens drawn or scored."""
        return self.candidate_tokens + self.rollout_tokens + self.scoring_tokens


class TokenBudget(Turnstile):
    """A number of tokens that backends may draw and score together; give it to the `Metered` of each.

    A call sets aside the most that it can use before it starts, and gives back what it has not used. While the budget
    could be spent by the calls under way, further ones wait for them, in order; once it is spent, they fail. So it is
    exceeded by less than what the largest single call sets aside, however many run at once.

    Args:
        limit: Tokens that may be used.

    Raises:
        BackendError: The limit is below 0.
    """

    def __init__(self, limit: int) -> None:
        """Nothing is spent yet."""
        super().__init__()
        if not is_count(limit, 0):
            raise BackendError(f"a token budget of {limit!r} is not possible; allowed: a whole number of at least 0")
        self.limit = limit
        self._spent = 0
        self._reserved = 0

    @property
    def spent(self) -> int:
        """Tokens used by calls that are over."""
        return self._spent

    @property
    def reserved(self) -> int:
        """Tokens set aside for calls under way."""
        return self._reserved

    def check(self) -> None:
        """Refuse further calls once the budget is spent.

        Raises:
            BudgetExceededError: It is.
        """
        if self._spent >= self.limit:
            raise BudgetExceededError(
                f"the budget of {self.limit} tokens is spent ({self._spent} were used); nothing more was sent"
            )

    async def reserve(self, tokens: int) -> None:
        """Set tokens aside for a call, which then has to `settle`; wait while calls under way may use up the rest.

        Raises:
            BudgetExceededError: The budget is spent.
        """
        await self._enter(tokens)

    def settle(self, reserved: int, used: int) -> None:
        """Give back what was set aside for a call, and count what it has used."""
        with self._lock:
            self._spent += used
            self._leave(reserved)

    def _take(self, size: int) -> bool:
        self.check()
        if self._spent + self._reserved >= self.limit:
            return False
        self._reserved += size
        return True

    def _give(self, size: int) -> None:
        self._reserved -= size


class Metered(BackendWrapper):
    """Counts calls and tokens of a backend, of all runs over this object together.

    Finished states cost nothing. What a failed or cancelled call had drawn is not known and not counted, and neither is
    what an endpoint that takes and gives text draws again because a row ended within a character, nor what a pool
    within draws again at another member, which it does with a whole call. So a budget that is to hold for all members'
    draws belongs on each member of a pool: ``Pool([Metered(one, budget), Metered(other, budget)])``. Where a backend
    does not tell the tokens of a rollout (an endpoint that takes and gives text), the most that it can have had is
    counted.

    Args:
        inner: The backend that does the work.
        budget: Most tokens, or a budget to share with other backends; None for no limit. Calls then begin from states
            of this object's own `begin`, `extend` and `adopt`: of others it does not know how long they may become.
            A call must not go through the same budget twice.

    Raises:
        BackendError: The budget is below 0, or that of a backend within as well.
    """

    def __init__(self, inner: Backend, budget: TokenBudget | int | None = None) -> None:
        """Count from 0."""
        super().__init__(inner)
        self.budget = budget if isinstance(budget, TokenBudget | None) else TokenBudget(budget)
        self._refuse_twice()
        self._usage = BackendUsage()
        self._lock = threading.Lock()
        self._max_tokens: StateNotes[int] = StateNotes()

    @property
    def usage(self) -> BackendUsage:
        """What was used so far."""
        return self._usage

    async def begin(self, prompt: Prompt, *, max_tokens: int, params: SamplingParams) -> State:
        """Return the empty response to a prompt; see `Backend.begin`.

        Raises:
            BudgetExceededError: The budget is spent.
        """
        if self.budget is not None:
            self.budget.check()
        self._count_call()
        state = await self.inner.begin(prompt, max_tokens=max_tokens, params=params)
        self._max_tokens.put([state], max_tokens)
        return state

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        """Draw n successors of a state; see `Backend.extend`.

        Raises:
            BudgetExceededError: The budget is spent.
        """
        left = self._left(state)
        states = await self._spend(
            "candidate_tokens",
            n * (tokens if left is None else min(tokens, left)),
            lambda: self.inner.extend(state, n, tokens=tokens, seed=seed),
            lambda states: sum(new.num_tokens - state.num_tokens for new in states),
        )
        self._inherit(state, states)
        return states

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        """Complete each state n times; see `Backend.rollout`.

        Raises:
            BudgetExceededError: The budget is spent.
        """
        left = [self._left(state) for state in states]
        return await self._spend(
            "rollout_tokens",
            n * sum(1 if tokens is None else tokens for tokens in left),
            lambda: self.inner.rollout(states, n, seed=seed),
            lambda groups: sum(completion.num_tokens for group in groups for completion in group),
        )

    def adopt(self, state: State, others: Sequence[State]) -> list[State]:
        """Return states for partial responses that another backend has drawn; see `Backend.adopt`."""
        states = self.inner.adopt(state, others)
        self._inherit(state, states)
        return states

    async def score(self, states: Sequence[State], completions: Sequence[Sequence[Completion]]) -> list[list[float]]:
        """Return the log-probabilities of completions (nats); see `Backend.score`.

        Raises:
            BudgetExceededError: The budget is spent.
        """
        tokens = sum(completion.num_tokens for group in completions for completion in group)
        return await self._spend(
            "scoring_tokens", tokens, lambda: self.inner.score(states, completions), lambda _: tokens
        )

    async def _spend(self, kind: _Kind, most: int, call: Callable[[], Awaitable[T]], count: Callable[[T], int]) -> T:
        """Make a call that uses ``most`` tokens at the most, and count what it has used."""
        budget = self.budget if most > 0 else None
        if budget is not None:
            await budget.reserve(most)
        used = 0
        try:
            self._count_call()
            result = await call()
            used = count(result)
        finally:
            if budget is not None:
                budget.settle(most, used)
        with self._lock:
            self._usage = replace(self._usage, **{kind: getattr(self._usage, kind) + used})
        return result

    def _count_call(self) -> None:
        with self._lock:
            self._usage = replace(self._usage, calls=self._usage.calls + 1)

    def _left(self, state: State) -> int | None:
        """Return how many tokens a state's response may still get, None where that is not known."""
        if state.finished:
            return 0
        most = self._max_tokens.get(state)
        return None if most is None else most - state.num_tokens

    def _inherit(self, state: State, states: Sequence[State]) -> None:
        most = self._max_tokens.get(state)
        if most is not None:
            self._max_tokens.put(states, most)

    def _refuse_twice(self) -> None:
        """Refuse a budget that a call would wait for while it holds some of it."""
        for backend in layers(self.inner):
            if self.budget is not None and isinstance(backend, Metered) and backend.budget is self.budget:
                raise BackendError("a backend within has the same token budget already; give it to one of them")
