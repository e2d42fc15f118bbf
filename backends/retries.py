"""Failed calls are tried again: jittered exponential back-off, the server's own wish, a deadline over all tries."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState

from backends.base import Backend, Completion, Prompt, SamplingParams, State
from backends.contract import is_count, is_number
from backends.errors import BackendError, EndpointError, restated
from backends.wrapper import BackendWrapper

T = TypeVar("T")

_log = logging.getLogger(__name__)
_jitter: random.Random = random.SystemRandom()
"""Without a state of its own: nothing that programs seed, and nothing that forked processes would share."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and for how long a request is tried.

    Only errors that say so (``retryable``) are tried again. Before try k + 1 the wait is drawn evenly from 0 to
    ``min(longest_delay, first_delay · 2^(k - 1))`` seconds ("full jitter"), on top of the server's ``retry_after``.

    Attributes:
        attempts: Most tries, the first one included.
        first_delay: Longest wait after the first failure (seconds); it doubles with every further one.
        longest_delay: What it never exceeds (seconds); a server's ``retry_after`` may.
        deadline: Most time for all tries and waits of one request (seconds); a try under way is cut off. None for no
            limit, so that a server that hangs, or asks for a long wait, is waited for.
    """

    attempts: int = 6
    first_delay: float = 0.5
    longest_delay: float = 20.0
    deadline: float | None = 120.0

    def __post_init__(self) -> None:
        """Refuse values outside their range.

        Raises:
            BackendError: With what was wrong and what is allowed.
        """
        if not is_count(self.attempts, 1):
            raise BackendError(f"attempts is {self.attempts!r}; allowed: a whole number of at least 1")
        for name in ("first_delay", "longest_delay"):
            value = getattr(self, name)
            if not (is_number(value) and value >= 0):
                raise BackendError(f"{name} is {value!r}; allowed: a finite number of at least 0 (seconds)")
        if self.deadline is not None and not (is_number(self.deadline) and self.deadline > 0):
            raise BackendError(f"deadline is {self.deadline!r}; allowed: a finite number above 0 (seconds), or None")

    async def call(self, function: Callable[[], Awaitable[T]], *, what: str) -> T:
        """Return what the function returns, which is called until it succeeds.

        Args:
            function: Sends the request once.
            what: Names the request, for messages.

        Raises:
            BackendError: An error that is not worth another try, as it came; or the last one of too many, of the same
                type and with the same attributes but ``retryable``, so that nothing above tries again.
            EndpointError: The deadline passed during a try.
        """
        result: T = await _Request(self, function, what).run()
        return result


class _Request:
    """One request on its way through its tries."""

    def __init__(self, policy: RetryPolicy, function: Callable[[], Awaitable[Any]], what: str) -> None:
        self._policy = policy
        self._function = function
        self._what = what
        self._clock = asyncio.get_running_loop().time
        self._start = self._clock()
        self._end = None if policy.deadline is None else self._start + policy.deadline
        self._failure: BaseException | None = None
        """How the last try ended."""
        self._too_late: str | None = None
        """Why no other try can begin in time, once none can."""
        self._first: BackendError | None = None
        """How the first try failed, until that has been told to tenacity."""

    async def run(self) -> Any:
        try:
            return await self._try()
        except BackendError as error:
            if not getattr(error, "retryable", False):
                raise
            self._first = error
        # Only now: of the thousands of requests that a program may have under way, few ever fail. And an object of its
        # own for each, because tenacity keeps in it what it is doing, by thread and not by task.
        retrying = AsyncRetrying(
            sleep=asyncio.sleep,
            retry=self._is_retryable,
            wait=self._wait,
            stop=self._is_over,
            before_sleep=self._tell,
            retry_error_callback=self._give_up,
        )
        return await retrying(self._try)

    async def _try(self) -> Any:
        """Send the request once; cut it off at the deadline."""
        if self._first is not None:
            first, self._first = self._first, None
            raise first
        try:
            async with asyncio.timeout_at(self._end) as scope:
                return await self._function()
        except TimeoutError as error:
            if not scope.expired():
                raise
            self._too_late = ""  # Also where the event loop, which may be early by a hair, has left a moment.
            before = "" if self._failure is None else f"; the try before failed: {self._failure}"
            raise EndpointError(
                f"{self._what}: no answer within the deadline of {self._policy.deadline:g} s{before}", retryable=True
            ) from error

    def _is_retryable(self, call: RetryCallState) -> bool:
        self._failure = call.outcome.exception() if call.outcome else None
        return isinstance(self._failure, BackendError) and bool(getattr(self._failure, "retryable", False))

    def _wait(self, call: RetryCallState) -> float:
        """Return the seconds to wait before the next try, which is to begin before the deadline."""
        least = max(0.0, getattr(self._failure, "retry_after", None) or 0.0)
        left = math.inf if self._end is None else self._end - self._clock()
        if least >= left:
            limit = "" if self._policy.deadline is None else f", and the deadline is {self._policy.deadline:g} s"
            self._too_late = f": the server asks for a wait of {least:g} s{limit}" if least else ""
            return 0.0
        # The exponent is bounded because floats are.
        longest = min(self._policy.longest_delay, self._policy.first_delay * 2.0 ** min(call.attempt_number - 1, 999))
        return least + _jitter.uniform(0.0, min(longest, left - least))

    def _is_over(self, call: RetryCallState) -> bool:
        """Say whether this was the last try; asked after `_wait`."""
        return self._too_late is not None or call.attempt_number >= self._policy.attempts

    def _tell(self, call: RetryCallState) -> None:
        _log.info("%s failed: %s; trying again in %.1f s", self._what, self._failure, call.upcoming_sleep)

    def _give_up(self, call: RetryCallState) -> None:
        """Raise the last error again, with what was tried in its message."""
        last = self._failure
        assert isinstance(last, BackendError)
        tries = "1 try" if call.attempt_number == 1 else f"{call.attempt_number} tries"
        gave_up = f"(gave up after {tries} in {self._clock() - self._start:.1f} s{self._too_late or ''})"
        raise restated(last, f"{last} {gave_up}", retryable=False) from last


class Retrying(BackendWrapper):
    """Tries failed calls of a backend again, each as a whole and with the same seed.

    A backend that sends requests through a `RetryPolicy` of its own needs none of this: it repeats less.

    Args:
        inner: The backend that does the work.
        policy: What is tried again, how often and for how long.
    """

    def __init__(self, inner: Backend, policy: RetryPolicy = RetryPolicy()) -> None:
        """Keep the policy."""
        super().__init__(inner)
        self.policy = policy

    async def begin(self, prompt: Prompt, *, max_tokens: int, params: SamplingParams) -> State:
        """Return the empty response to a prompt; see `Backend.begin` and `RetryPolicy.call`."""
        return await self._call("begin", lambda: self.inner.begin(prompt, max_tokens=max_tokens, params=params))

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        """Draw n successors of a state; see `Backend.extend` and `RetryPolicy.call`."""
        return await self._call("extend", lambda: self.inner.extend(state, n, tokens=tokens, seed=seed))

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        """Complete each state n times; see `Backend.rollout` and `RetryPolicy.call`."""
        return await self._call("rollout", lambda: self.inner.rollout(states, n, seed=seed))

    async def score(self, states: Sequence[State], completions: Sequence[Sequence[Completion]]) -> list[list[float]]:
        """Return the log-probabilities of completions (nats); see `Backend.score` and `RetryPolicy.call`."""
        return await self._call("score", lambda: self.inner.score(states, completions))

    async def _call(self, call: str, function: Callable[[], Awaitable[T]]) -> T:
        return await self.policy.call(function, what=f"{call} of {self.name}")
