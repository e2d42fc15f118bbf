"""Several endpoints of one model as one backend: the least busy one is chosen, one that fails is replaced in mid-run.

backend = Pool([backends.load("vllm/MODEL@http://one:8000/v1"), backends.load("vllm/MODEL@http://two:8000/v1")])
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields
from typing import TypeVar

from backends._pool_failures import CannotMoveError, Failures, is_final
from backends._pool_members import Member, Roster, Waits
from backends._pool_states import PoolState, Run, main_run, own_pool_state, plain, with_confidence, wrapped
from backends.base import Backend, Capabilities, Completion, Prompt, SamplingParams, State
from backends.contract import BackendContext, check_budget, check_counts, check_prompt
from backends.errors import (
    BackendClosedError,
    BackendError,
    CapabilityError,
    TokenizerMismatchError,
)
from backends.tokenization import Tokenization

T = TypeVar("T")

DEFAULT_PATIENCE = 30.0
"""A server for language models answers some call within seconds even where it has hundreds."""


class Pool(BackendContext):
    """Several backends of one and the same model as one.

    A run goes to the member with the fewest sequences under way and stays there, because its caches are there. When the
    member fails, the run goes on at another one: from the same tokens with the same seeds, so with the same result
    where members can seed. A member that failed is tried again later, by one call, while the others go elsewhere. Once
    it is back, each run looks once whether it has less to do than the run's own member, and then goes there.

    What a server refuses, or answers with a status from 500 on, may be the request's fault: such a member leaves only
    when another one does the same call. One whose queue is full, whose context is too short or whose tokens are used up
    is passed over and stays.

    A request that fails on all members fails with `QueueFullError` where a queue was full; otherwise with an
    `EndpointError`, which says whether another try may succeed, where one of theirs was one, and with an
    `UnreachableError` where all of them were; otherwise with an error of the members' kind where they agree. The pool
    has no time limit of its own.

    A member that has had calls under way for some time and has answered none may hang: new calls go to others, while
    those that it has may go on. It leaves when one of them fails, by a time limit of the member's own, or is given up,
    by one of the run's.

    Args:
        members: Backends of the same model, each of its own; the pool closes them.
        first_delay: Seconds until a member that failed is tried again. It doubles with each further failure.
        longest_delay: Most seconds between two tries, unless the member itself asks for more: one that names a time is
            tried then, but not before ``first_delay`` and after an hour at the latest, and this does not count as a
            failure.
        patience: Seconds with calls under way but without an answer, those of calls that were given up meanwhile
            included, after which a member may hang. A server that answers other calls is only slow. One whose answers
            take longer by nature is not tried less for it where all are alike.

    Raises:
        BackendError: An argument cannot be used.
        TokenizerMismatchError: The members' tokens differ, so they are not the same model.
    """

    def __init__(
        self,
        members: Sequence[Backend],
        *,
        first_delay: float = 5.0,
        longest_delay: float = 60.0,
        patience: float = DEFAULT_PATIENCE,
    ) -> None:
        """Ask nobody yet."""
        if isinstance(members, str) or not all(hasattr(member, "begin") for member in members):
            raise BackendError("the members of a pool are backends; open one by name with backends.load")
        if not members:
            raise BackendError("a pool needs at least one member")
        if len({id(member) for member in members}) < len(members):
            raise BackendError("a backend is a member of the pool twice; give each endpoint a backend of its own")
        waits = Waits(first_delay=first_delay, longest_delay=longest_delay, patience=patience)
        self._backends = tuple(members)
        _common_tokenization(self._backends)
        self._roster = Roster(self._backends, waits)
        self._closed = False

    @property
    def name(self) -> str:
        """The members' name, or all of their names."""
        return " + ".join(dict.fromkeys(member.name for member in self._backends))

    @property
    def parts(self) -> tuple[Backend, ...]:
        """The members; see `backends.wrapper.layers`."""
        return self._backends

    @property
    def capabilities(self) -> Capabilities:
        """What all members can do."""
        known = [member.capabilities for member in self._backends]
        return Capabilities(
            **{entry.name: all(getattr(one, entry.name) for one in known) for entry in fields(Capabilities)}
        )

    @property
    def tokenization(self) -> Tokenization | None:
        """What tokens mean to all members; None where that is not known of one."""
        return _common_tokenization(self._backends)

    async def begin(self, prompt: Prompt, *, max_tokens: int, params: SamplingParams) -> State:
        """Return the empty response of the least busy member; see `backends.Backend.begin`.

        Raises:
            BackendError: All members failed; the message has them all.
        """
        self._check_open()
        check_prompt(prompt)
        check_budget(max_tokens)
        prompt = prompt if isinstance(prompt, str) else tuple(dict(message) for message in prompt)
        failures = Failures(self._roster)
        while member := self._roster.choose(failures.tried, probe=True):
            try:
                with self._roster.attempt(member, 1) as attempt:
                    own = await member.backend.begin(prompt, max_tokens=max_tokens, params=params)
            except BackendError as error:
                if is_final(error):
                    raise
                self._check_open()
                failures.add(attempt, error)
                continue
            self._roster.postpone(attempt)
            failures.blame()
            run = Run(prompt, max_tokens, params, member, self._roster.comebacks, trial=attempt.trial)
            return wrapped(run, member, own)
        raise failures.error("begin")

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        """Draw n successors of a state at its member; see `backends.Backend.extend`.

        Raises:
            BackendError: All members failed; the message has them all.
        """
        self._check_open()
        own = own_pool_state(state)
        check_counts(n, tokens)
        if own.finished:
            return [own] * n

        async def work(backend: Backend, states: Sequence[State]) -> list[State]:
            return await backend.extend(states[0], n, tokens=tokens, seed=seed)

        drawn, member = await self._serve("extend", [own], n, work)
        return [wrapped(own.run, member, new) for new in drawn]

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        """Complete each state n times, all at one member; see `backends.Backend.rollout`.

        Rows that failed are drawn again at the other members, unless they are `Completion.final`. What fails everywhere
        comes back as it is.

        Raises:
            BackendError: All members failed; the message has them all.
        """
        self._check_open()
        own = [own_pool_state(state) for state in states]
        check_counts(n)
        if not own:
            return []

        async def work(backend: Backend, states: Sequence[State]) -> list[list[Completion]]:
            return await backend.rollout(states, n, seed=seed)

        drawn, _ = await self._serve("rollout", own, n * len(own), work, missing=_missing, merge=_filled)
        return drawn

    def adopt(self, state: State, others: Sequence[State]) -> list[State]:
        """Return states for partial responses that another backend has drawn; see `backends.Backend.adopt`."""
        own = own_pool_state(state)
        place = own.place
        adopted = place.member.backend.adopt(place.own, [plain(other) for other in others])
        return [wrapped(own.run, place.member, new) for new in adopted]

    async def score(self, states: Sequence[State], completions: Sequence[Sequence[Completion]]) -> list[list[float]]:
        """Return the log-probabilities of completions, all from one member; see `backends.Backend.score`.

        Raises:
            BackendError: All members failed; the message has them all.
        """
        self._check_open()
        own = [own_pool_state(state) for state in states]
        if len(own) != len(completions):
            raise BackendError(
                f"score needs a list of completions for each state, not {len(completions)} for {len(own)}"
            )
        if not own:
            return []

        async def work(backend: Backend, states: Sequence[State]) -> list[list[float]]:
            return await backend.score(states, completions)

        scores, _ = await self._serve("score", own, sum(map(len, completions)), work)
        return scores

    async def aclose(self) -> None:
        """Close all members, also where closing one fails; what is under way fails with `BackendClosedError`.

        Raises:
            Exception: What a member raised, once all others are closed.
        """
        self._closed = True
        results = await asyncio.gather(*(member.aclose() for member in self._backends), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _serve(
        self,
        call: str,
        states: Sequence[PoolState],
        rows: int,
        work: Callable[[Backend, Sequence[State]], Awaitable[T]],
        *,
        missing: Callable[[T], int] = lambda _: 0,
        merge: Callable[[T, T], T] = lambda _, fresh: fresh,
    ) -> tuple[T, Member]:
        """Have a call done by the member that the run is at home, or by others until one does it.

        All states go to the same member, and stay in their order: seeds depend on a state's place in the call.

        Args:
            call: Its name, for messages.
            states: The states, at least one.
            rows: How much work it is.
            work: Does it, given a member's backend and its own states.
            missing: Tells how many rows of a result failed.
            merge: Puts rows of the second result in the places of those that failed in the first.
        """
        run = main_run(state.run for state in states)
        home = run.home
        failures = Failures(self._roster)
        result: T | None = None
        while member := self._next(run, failures.tried):
            try:
                with self._roster.attempt(member, rows) as attempt:
                    fresh = await work(member.backend, await self._at(member, states))
            except CannotMoveError as error:
                self._roster.postpone(attempt)
                failures.stuck(member, error)
                continue
            except BackendError as error:
                if is_final(error):
                    if result is None:
                        raise
                    break  # What one member has drawn is not lost because another refuses to draw the rest.
                self._check_open()
                failures.add(attempt, error)
                continue
            finally:
                run.trial = False
            member.answered()
            before = math.inf if result is None else missing(result)
            result = fresh if result is None else merge(result, fresh)
            left = missing(result)
            if left == 0 or left < before < math.inf:
                self._roster.served(attempt)
                if attempt.trial and member.healthy:
                    run.home = member
                failures.blame()
            if left == 0:
                return result, member
            failures.incomplete(attempt, missing(fresh))
        if result is None:
            run.home = home  # Its caches may still be there.
            raise failures.error(call)
        return result, run.home

    def _next(self, run: Run, tried: Sequence[Member]) -> Member | None:
        """Return the member that a run's call goes to, or None where all have been tried.

        That is its home, unless that is out, seems to hang or has failed the call already, another one is due to be
        tried, or one has come back that has less to do.
        """
        if run.trial and run.home not in tried:
            return run.home
        if not tried:
            if due := self._roster.due(home=run.home):
                return due  # Its home stays what it is until the other one has done the call.
            back, run.comebacks = self._roster.returned(run.comebacks), self._roster.comebacks
            if back is not None and back.rows < run.home.rows:
                run.home = back
        hangs = self._roster.seems_to_hang
        if run.home in tried or not run.home.healthy or hangs(run.home):
            other = self._roster.choose(tried, home=run.home)
            # Where all seem to hang, their answers may just take long, and its caches are at home.
            if other is not None and not (run.home.healthy and run.home not in tried and hangs(other)):
                run.home = other
        return run.home if run.home not in tried else None

    async def _at(self, member: Member, states: Sequence[PoolState]) -> list[State]:
        """Return a member's own states; those that are elsewhere move to it, and their old places are forgotten."""
        # A snapshot: while this waits, another call may move a state elsewhere.
        here = {id(state): state.place.own for state in states if state.place.member is member}
        away = [state for state in states if id(state) not in here]
        for run in dict.fromkeys(state.run for state in away):
            start = await member.backend.begin(run.prompt, max_tokens=run.max_tokens, params=run.params)
            moved = [state for state in away if state.run is run]
            # A response without tokens is what `begin` gives; even those who cannot adopt can go on from there.
            further = [state for state in moved if state.num_tokens or state.finished]
            try:
                adopted = member.backend.adopt(start, [plain(state) for state in further]) if further else []
            except CapabilityError as error:
                raise CannotMoveError(str(error)) from error
            here |= {id(state): start for state in moved}
            here |= {id(state): with_confidence(own, state) for state, own in zip(further, adopted, strict=True)}
            for state in moved:
                state.place.member, state.place.own = member, here[id(state)]
        return [here[id(state)] for state in states]

    def _check_open(self) -> None:
        if self._closed:
            raise BackendClosedError(f"the pool of {self.name} is closed")


def _common_tokenization(members: Sequence[Backend]) -> Tokenization | None:
    """Return what tokens mean to all members; None where that is not known of one."""
    known = [(member.name, member.tokenization) for member in members]
    named = [(name, one) for name, one in known if one is not None]
    for name, one in named[1:]:
        if difference := named[0][1].difference(one):
            raise TokenizerMismatchError(
                f"{named[0][0]} and {name} are not the same model, so they cannot be members of one pool: {difference}"
            )
    return named[0][1] if len(named) == len(known) else None


def _missing(groups: list[list[Completion]]) -> int:
    """Return how many rows were lost."""
    return sum(_lost(row) for group in groups for row in group)


def _filled(known: list[list[Completion]], fresh: list[list[Completion]]) -> list[list[Completion]]:
    """Return rollouts with those that were lost drawn by another member; row for row the seeds are the same."""
    return [
        [again if _lost(row) else row for row, again in zip(*groups, strict=True)]
        for groups in zip(known, fresh, strict=True)
    ]


def _lost(row: Completion) -> bool:
    """Whether a row failed, and another member is to draw it."""
    return row.finish_reason == "error" and not row.final


_: type[Backend] = Pool
