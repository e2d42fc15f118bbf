"""Options that all backends of servers share, checked before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from backends.contract import is_number
from backends.errors import BackendError
from backends.limits import Limiter
from backends.retries import RetryPolicy

DEFAULT_CONCURRENCY = 32
DEFAULT_TIMEOUT = 300.0
_LONGEST_TIMEOUT = 1e9
"""Seconds; some 30 years, with which clocks can still be reckoned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """How requests are sent.

    Attributes:
        key: The key, where one was given.
        retries: What is tried again, how often and for how long.
        limiter: Most requests at the same time.
        timeout: Seconds that a single try may take.
    """

    key: SecretStr | None
    retries: RetryPolicy
    limiter: Limiter
    timeout: float


def checked(
    *,
    model: object,
    api_key: str | SecretStr | None,
    retries: RetryPolicy | None,
    max_concurrency: int | Limiter,
    timeout: float,
) -> RequestOptions:
    """Return options as they are used, with defaults for those that are not given.

    Raises:
        BackendError: With what was wrong and what is allowed.
    """
    if not isinstance(model, str):
        raise BackendError(f"the model is {model!r}; allowed: a name")
    if isinstance(api_key, str):
        api_key = SecretStr(api_key)
    if api_key is not None and not isinstance(api_key, SecretStr):
        raise BackendError(f"api_key is of type {type(api_key).__name__}; allowed: a text, a SecretStr, or None")
    if retries is not None and not isinstance(retries, RetryPolicy):
        raise BackendError(f"retries is {retries!r}; allowed: a RetryPolicy, or None")
    check_seconds("timeout", timeout)
    return RequestOptions(
        key=api_key,
        retries=retries if retries is not None else RetryPolicy(deadline=2 * timeout),
        limiter=Limiter.of(max_concurrency),
        timeout=timeout,
    )


def check_seconds(name: str, value: Any) -> None:
    """Refuse what is no time to wait.

    Raises:
        BackendError: With what was wrong and what is allowed.
    """
    if not (is_number(value) and 0 < value <= _LONGEST_TIMEOUT):
        raise BackendError(f"{name} is {value!r}; allowed: a number above 0, {_LONGEST_TIMEOUT:g} at most (seconds)")
