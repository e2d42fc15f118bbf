"""What one caller may have: so many answers at a time and in a minute, in requests of so many bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from backends import Limiter, QueueFullError
from ets_agent._connections import BODY_SECONDS
from ets_agent._serving import MAX_ANSWERS, MAX_BODY
from ets_agent.errors import ConfigError
from ets_agent.keys import Caller
from ets_agent.server.errors import ApiError

_MINUTE = 60.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of the server; those of a single answer are the policy's.

    Attributes:
        rate: Most answers that a caller may begin in a minute; None for any number.
        key_concurrency: Most answers of one caller at the same time, waiting ones included; None for any number.
        max_answers: Most answers of one request: prompts times ``n``.
        max_body: Most bytes of a request's body.
        body_seconds: Longest time that a client may take to send it.
        stall_seconds: Longest time that a client may take to read what was sent, before its run is ended.
    """

    rate: int | None = None
    key_concurrency: int | None = None
    max_answers: int = MAX_ANSWERS
    max_body: int = MAX_BODY
    body_seconds: float = BODY_SECONDS
    stall_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Check everything."""
        for name in ("rate", "key_concurrency", "max_answers", "max_body", "body_seconds", "stall_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value}; allowed: a number above 0")

    @property
    def answers(self) -> int:
        """Most answers that one request can ever get."""
        return min(each for each in (self.max_answers, self.key_concurrency, self.rate) if each is not None)

    def within(self, places: Limiter) -> Limits:
        """Return these limits where no request can get more answers than there are places, to wait in included."""
        if places.max_queue is None:
            return self
        return replace(self, max_answers=min(self.max_answers, places.max_concurrency + places.max_queue))

    def check(self, answers: int, *, param: str) -> None:
        """Refuse what no request can ever get; before any work is done for it.

        Args:
            answers: So many are asked for.
            param: The parameter that says so.

        Raises:
            ApiError: It is too many.
        """
        if answers > self.answers:
            raise ApiError(
                400,
                f"{answers} answers are asked for at once; allowed: at most {self.answers}",
                param=param,
                code="invalid_value",
            )


@dataclass(slots=True)
class _Account:
    """What a caller has used: answers under way, and what is left of those of a minute, at some time."""

    active: int
    left: float
    at: float


class Admission:
    """Lets callers in, or tells them when to come back.

    What may be begun in a minute comes back bit by bit: after a pause of a minute, all of it can be used at once.

    Args:
        limits: The limits.
        clock: Seconds that go by.
    """

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Nobody has used anything."""
        self.limits = limits
        self._clock = clock
        self._accounts: dict[Caller, _Account] = {}

    @contextmanager
    def admit(self, caller: Caller, answers: int) -> Iterator[None]:
        """Count some answers of a caller while they are in the making.

        Args:
            caller: Who asks.
            answers: No more than `Limits.check` lets pass.

        Raises:
            ApiError: It is too many for now.
            backends.QueueFullError: What is done meanwhile has raised it; what a minute allows is given back.
        """
        now = self._clock()
        account = self._accounts.setdefault(caller, _Account(active=0, left=float(self.limits.rate or 0), at=now))
        self._check_concurrency(account, answers)
        self._check_rate(account, answers, now)
        account.active += answers
        try:
            yield
        except QueueFullError:
            # Nothing was begun for it.
            account.left += answers if self.limits.rate is not None else 0
            raise
        finally:
            account.active -= answers

    def _check_concurrency(self, account: _Account, answers: int) -> None:
        most = self.limits.key_concurrency
        if most is not None and account.active + answers > most:
            raise ApiError(
                429,
                f"{account.active} answers for this key are in the making; allowed: {most} at the same time",
                code="rate_limit_exceeded",
                retry_after=1.0,
            )

    def _check_rate(self, account: _Account, answers: int, now: float) -> None:
        rate = self.limits.rate
        if rate is None:
            return
        account.left = min(float(rate), account.left + (now - account.at) * rate / _MINUTE)
        account.at = now
        if account.left < answers:
            raise ApiError(
                429,
                f"too many answers in a minute for this key; allowed: {rate}",
                code="rate_limit_exceeded",
                retry_after=(answers - account.left) * _MINUTE / rate,
            )
        account.left -= answers
