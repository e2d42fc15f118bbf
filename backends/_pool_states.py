"""The states of a pool: what they show, which run they belong to, and at which member they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from backends._pool_members import Member
from backends.base import Prompt, SamplingParams, State
from backends.contract import own_state


@dataclass(slots=True, eq=False)
class Run:
    """All states that come from one `Pool.begin`, and the member where they are at home.

    Attributes:
        prompt: What it began with.
        max_tokens: What it began with.
        params: What it began with.
        home: The member that its calls go to.
        comebacks: How often members had come back when it last looked for one with less to do than its home.
        trial: Whether it has begun at its home while that was out, so that its first call finds out if it works again.
    """

    prompt: Prompt
    max_tokens: int
    params: SamplingParams
    home: Member
    comebacks: int
    trial: bool = False


@dataclass(slots=True, eq=False)
class Place:
    """Where a state is: a member and that member's own state. It changes when the run has to move."""

    member: Member
    own: State


@dataclass(frozen=True, kw_only=True)
class PoolState(State):
    """A member's state, as far as it shows, and where that is.

    Attributes:
        fingerprint: Hash of the first member's state: what that one compares, and those of `State` do not show.
        run: The run that it belongs to.
        place: Where it is.
    """

    fingerprint: int = field(repr=False)
    run: Run = field(repr=False, compare=False)
    place: Place = field(repr=False, compare=False)

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt; None where its member does not know."""
        return self.place.own.prompt_tokens


def own_pool_state(state: State) -> PoolState:
    """Return a state as a pool's own; see `backends.contract.own_state`."""
    return own_state(state, PoolState, "a pool")


def wrapped(run: Run, member: Member, own: State) -> PoolState:
    """Return a pool's state for that of a member."""
    shown: dict[str, Any] = {entry.name: getattr(own, entry.name) for entry in fields(State)}
    return PoolState(**shown, fingerprint=hash(own), run=run, place=Place(member, own))


def plain(state: State) -> State:
    """Return what a member is to adopt: another member's state itself, which may tell more than its tokens do."""
    if isinstance(state, PoolState) and state.place.own.token_ids == state.token_ids:
        return state.place.own
    return state


def with_confidence(own: State, before: State) -> State:
    """Return a state with the confidence that it had at another member.

    What is adopted has none, because its tokens may come from another model; these come from the same one.
    """
    return own if before.confidence is None else replace(own, confidence=before.confidence)


def main_run(runs: Iterable[Run]) -> Run:
    """Return the run with the most states, the first of several."""
    ((run, _),) = Counter(runs).most_common(1)
    return run
