"""The members of a pool: who is healthy, who has the least to do, and when one that failed is tried again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

from backends._pool_late import LateBackend
from backends.base import Backend
from backends.contract import is_number
from backends.errors import BackendError, EndpointError, UnusableDrawError

_log = logging.getLogger("backends.pool")

_LONGEST_WISH = 3600.0
"""Most seconds that a server's own wish is believed: what asks for more would be out for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """How long a pool waits for its members; what they mean is told by `backends.pool.Pool`, which has them all.

    Attributes:
        first_delay: Seconds until a member that failed is tried again, doubled with each failure in a row.
        longest_delay: Most seconds between two tries, unless the member itself asks for more.
        patience: Seconds that a member may leave all its calls without an answer.
    """

    first_delay: float
    longest_delay: float
    patience: float

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            BackendError: With what was wrong and what is allowed.
        """
        for name in ("first_delay", "patience"):
            value = getattr(self, name)
            if not (is_number(value) and value > 0):
                raise BackendError(f"{name} is {value!r}; allowed: a finite number above 0 (seconds)")
        if not (is_number(self.longest_delay) and self.longest_delay >= self.first_delay):
            raise BackendError(
                f"longest_delay is {self.longest_delay!r}; allowed: a finite number (seconds), at least first_delay, "
                f"which is {self.first_delay:g}"
            )


@dataclass(slots=True, eq=False)
class Member:
    """One endpoint, and how it is doing.

    Attributes:
        backend: The endpoint.
        label: What messages call it.
        rows: Sequences that it is working on.
        turn: When it was chosen last, as a count; among equally busy ones the first in turn is next.
        failures: Failures since it last worked.
        until: While it is out, the time (seconds, monotonic) from which it may be tried; None while it is healthy.
        trials: Calls under way that try it while it is out.
        epoch: Counts its leaving and coming back, so that what began before tells nothing about it after.
        comeback: The roster's count when it last came back; 0 if it never did.
        calls: Calls under way.
        waited: Seconds that it had calls to answer since it answered last, without those since ``waiting_from``.
        waiting_from: Since when it has had calls under way without a pause or an answer (seconds, monotonic).
    """

    backend: Backend
    label: str
    rows: int = 0
    turn: int = 0
    failures: int = 0
    until: float | None = None
    trials: int = 0
    epoch: int = 0
    comeback: int = 0
    calls: int = 0
    waited: float = 0.0
    waiting_from: float = 0.0

    @property
    def healthy(self) -> bool:
        """Whether it is not out."""
        return self.until is None

    @property
    def due(self) -> bool:
        """Whether it is out, and a call should find out if it works again; one at a time."""
        return self.until is not None and self.trials == 0 and monotonic() >= self.until

    @property
    def silence(self) -> float:
        """Seconds that it has had something to answer since it answered last, be it calls that were given up since."""
        return self.waited + (monotonic() - self.waiting_from if self.calls else 0.0)

    def answered(self) -> None:
        """Note that it has answered a call that is work, so that it does not hang."""
        self.waited, self.waiting_from = 0.0, monotonic()


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """One call of one member.

    Attributes:
        member: The member.
        trial: Whether the member was out when the call began.
        epoch: The member's at that time.
    """

    member: Member
    trial: bool
    epoch: int


class Roster:
    """All members of a pool.

    Args:
        backends: Their backends.
        waits: How long they are waited for.

    Attributes:
        members: All of them, in order.
        comebacks: How often any of them has come back.
    """

    def __init__(self, backends: Sequence[Backend], waits: Waits) -> None:
        """Everyone is healthy but those that have yet to join."""
        names = [backend.name for backend in backends]
        labels = (
            names
            if len(set(names)) == len(names)
            else [f"{name} (member {i})" for i, name in enumerate(names, start=1)]
        )
        self.comebacks = 0
        self.members = [Member(backend, label) for backend, label in zip(backends, labels, strict=True)]
        self._waits = waits
        self._turn = 0
        for member in self.members:
            if isinstance(member.backend, LateBackend):
                member.failures = 1
                member.until = monotonic() + self._wait(member)

    def choose(
        self, tried: Collection[Member] = (), *, probe: bool = False, home: Member | None = None
    ) -> Member | None:
        """Return the member that the next call goes to, or None where all have been tried.

        That is the least busy healthy one that does not seem to hang, or else of those who do. Where none is healthy,
        it is the least busy one, at once: a call is never refused without trying, and those who are out share the
        calls.

        Args:
            tried: Members that have failed this call already.
            probe: Whether a member that is due comes before the healthy ones, to find out if it works again.
            home: Which one to prefer where none is healthy and several are as busy.
        """
        left = [member for member in self.members if member not in tried]
        healthy = [member for member in left if member.healthy]
        chosen = self.due(tried, home=home) if probe else None
        chosen = chosen or min(
            [member for member in healthy if not self.seems_to_hang(member)] or healthy or left,
            key=lambda member: (member.rows, member is not home, member.until or 0.0, member.turn),
            default=None,
        )
        if chosen is None:
            return None
        self._turn += 1
        chosen.turn = self._turn
        return chosen

    def due(self, tried: Collection[Member] = (), *, home: Member | None = None) -> Member | None:
        """Return the member that a call should try, home before others; None where none is due."""
        due = [member for member in self.members if member.due and member not in tried]
        return min(due, key=lambda member: (member is not home, member.until or 0.0), default=None)

    def returned(self, since: int) -> Member | None:
        """Return the least busy one of those that have come back since that many comebacks; None where none has."""
        back = [member for member in self.members if member.healthy and member.comeback > since]
        return min(back, key=lambda member: (member.rows, member.turn), default=None)

    def seems_to_hang(self, member: Member) -> bool:
        """Whether a member has calls under way and has answered none for longer than it may."""
        return member.calls > 0 and member.silence >= self._waits.patience

    @contextmanager
    def attempt(self, member: Member, rows: int) -> Iterator[Attempt]:
        """Count a call as under way, until it ends in whatever way.

        One that is given up while its member seems to hang is a failure: a run with a time limit sees no other sign of
        a machine that is gone.
        """
        attempt = Attempt(member, trial=not member.healthy, epoch=member.epoch)
        if not member.calls:
            member.waiting_from = monotonic()
        member.calls += 1
        member.rows += rows
        member.trials += attempt.trial
        try:
            yield attempt
        except asyncio.CancelledError:
            if self.seems_to_hang(member):
                self.leave(attempt, f"it has left its calls without an answer for {member.silence:.3g} s")
            raise
        except EndpointError as error:
            if error.status is not None or isinstance(error, UnusableDrawError):
                member.answered()
            raise
        finally:
            member.waited = member.silence
            member.waiting_from = monotonic()
            member.calls -= 1
            member.rows -= rows
            member.trials -= attempt.trial

    def leave(self, attempt: Attempt, reason: object) -> None:
        """Take a member out that failed a call.

        Args:
            attempt: The call.
            reason: What went wrong.
        """
        member = attempt.member
        if attempt.epoch != member.epoch:
            return  # It has left already, for other calls that failed at the same time; that counts once.
        member.epoch += 1
        named = reason.retry_after if isinstance(reason, EndpointError) else None
        if named is None:
            member.failures += 1
            wait = self._wait(member)
        else:  # It knows when it will work again, so this says nothing of how long it may take.
            wait = max(self._waits.first_delay, min(named, _LONGEST_WISH))
        member.until = monotonic() + wait
        _log.warning("%s leaves the pool and is tried again in %.3g s: %s", member.label, wait, str(reason))

    def served(self, attempt: Attempt) -> None:
        """Take a member back in if this call has shown that it works again."""
        member = attempt.member
        if attempt.trial and attempt.epoch == member.epoch:
            member.failures = 0
            member.epoch += 1
            member.until = None
            self.comebacks += 1
            member.comeback = self.comebacks
            _log.info("%s is back in the pool", member.label)

    def postpone(self, attempt: Attempt) -> None:
        """Wait before another call tries a member that is out, because this one has only begun a response there.

        To begin takes no work of many a member, so it does not show that it works.
        """
        member = attempt.member
        if attempt.trial and attempt.epoch == member.epoch:
            member.until = monotonic() + self._wait(member)

    def _wait(self, member: Member) -> float:
        doublings = min(max(member.failures - 1, 0), 64)  # More would not fit into a float.
        return min(self._waits.first_delay * 2.0**doublings, self._waits.longest_delay)
