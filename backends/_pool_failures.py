"""What a pool knows of a call that some of its members could not do: who leaves for it, and what is raised."""

from __future__ import annotations

from backends._pool_members import Attempt, Member, Roster
from backends.errors import (
    BackendError,
    BudgetExceededError,
    CapabilityError,
    ContextLengthError,
    EndpointError,
    PromptError,
    QueueFullError,
    UnreachableError,
    UnusableDrawError,
    restated,
)

_REFUSED = frozenset({400, 413, 415, 422})
"""HTTP statuses with which a server that works refuses a request; one that it cannot cope with, it answers with 5xx."""


_FINAL = (PromptError, CapabilityError, UnusableDrawError)
"""Errors of the request or the model, not of the member: another one would say the same, or is not to be asked."""

_DECLINED = (QueueFullError, ContextLengthError, BudgetExceededError)
"""Errors of a member that works, but does not take this call; another one, with limits of its own, may.

Where their kinds differ, the first of these is what the call fails with: the budget last, because it ends a whole run.
"""


class CannotMoveError(Exception):
    """A member cannot go on from another one's state."""


class Failures:
    """The members that could not do a call, and what is to be said about them."""

    def __init__(self, roster: Roster) -> None:
        """Nobody has failed yet."""
        self.tried: list[Member] = []
        self._roster = roster
        self._errors: list[BackendError] = []
        self._texts: list[str] = []
        self._suspects: list[tuple[Attempt, object]] = []
        self._stuck: CannotMoveError | None = None

    def add(self, attempt: Attempt, error: BackendError) -> None:
        """Note a call that failed.

        The member leaves; if the request may be at fault, once another member does it; and not where a limit of its own
        kept it from the call.
        """
        self._note(attempt.member, str(error))
        self._errors.append(error)
        if isinstance(error, _DECLINED):
            return
        if isinstance(error, EndpointError) and _may_be_the_requests(error.status):
            self._suspects.append((attempt, error))
        else:
            self._roster.leave(attempt, error)

    def incomplete(self, attempt: Attempt, missing: int) -> None:
        """Note a call of which some rows failed. The member leaves once another can draw them."""
        self._note(attempt.member, f"{missing} rows failed")
        self._suspects.append((attempt, f"{missing} rows failed"))

    def stuck(self, member: Member, error: CannotMoveError) -> None:
        """Note a member that cannot go on from the run's states; that is no failure of its own."""
        self._note(member, f"cannot take the run over ({error})")
        self._stuck = error

    def blame(self) -> None:
        """Another member did what the suspects could not: they leave."""
        for attempt, reason in self._suspects:
            self._roster.leave(attempt, reason)
        self._suspects.clear()

    def error(self, call: str) -> BackendError:
        """Return what to raise where all members have been tried: one error, with the names of all.

        Its kind and what it says of another try do not depend on their order. That it is worth another try is said if
        one member says so; that a limit is in the way, if all do; a status, if all servers that failed gave it.
        """
        if len(self.tried) == 1 and self._errors:
            return self._errors[0]
        message = f"{call} failed on all members of the pool: {'; '.join(self._texts)}"
        error = self._joint(message)
        error.__cause__ = self._errors[-1] if self._errors else self._stuck
        return error

    def _joint(self, message: str) -> BackendError:
        if any(isinstance(one, QueueFullError) for one in self._errors):
            return QueueFullError(message)
        if endpoints := [one for one in self._errors if isinstance(one, EndpointError)]:
            waits = [one.retry_after for one in endpoints if one.retry_after is not None]
            statuses = {one.status for one in endpoints}
            kind = UnreachableError if all(isinstance(one, UnreachableError) for one in self._errors) else EndpointError
            return kind(
                message,
                status=statuses.pop() if len(statuses) == 1 else None,
                retryable=any(one.retryable for one in endpoints),
                retry_after=min(waits, default=None),
            )
        broken = [one for one in self._errors if not isinstance(one, _DECLINED)]
        if self._stuck is not None and (broken or not self._errors):
            return CapabilityError(message)
        if not broken:
            return restated(min(self._errors, key=_place), message)
        return restated(broken[0], message) if len(set(map(type, broken))) == 1 else BackendError(message)

    def _note(self, member: Member, text: str) -> None:
        self.tried.append(member)
        self._texts.append(f"{member.label}: {text}")


def _place(error: BackendError) -> int:
    """Return the place of an error's kind among `_DECLINED`."""
    return next(place for place, kind in enumerate(_DECLINED) if isinstance(error, kind))


def is_final(error: BackendError) -> bool:
    """Whether a call that failed so is not to be made at another member."""
    return isinstance(error, _FINAL) and not isinstance(error, _DECLINED)


def _may_be_the_requests(status: int | None) -> bool:
    """Whether a server may have answered with this status because of what it was asked."""
    return status is not None and (status in _REFUSED or status >= 500)
