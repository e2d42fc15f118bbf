"""What HTTP statuses and headers say of a failed request, and of sending it again."""

from __future__ import annotations

import email.utils
import logging
import math
import time
from collections.abc import Mapping
from datetime import UTC

from backends.errors import EndpointError

_log = logging.getLogger(__name__)

_RETRYABLE = frozenset({408, 409, 425, 429})
"""Statuses below 500 after which the same request may succeed."""
_HOPELESS = frozenset({501, 505})
"""Statuses from 500 on after which it cannot."""
_LONGEST_WAIT = 86400.0
"""Seconds."""
_SPENT = "insufficient_quota"
"""What OpenAI calls a 429 that waiting does not help."""


def failure(text: str, status: int, *, headers: Mapping[str, str], code: str, key_hint: str) -> EndpointError:
    """Return the error for an answer that is none.

    Args:
        text: What failed, and what the server said.
        status: The answer's.
        headers: The answer's, with names in any case.
        code: What the server calls the error, or a text that has it somewhere.
        key_hint: What to check when the server refuses the key.
    """
    advice = ""
    if status in {401, 403}:
        advice = f"; check the key ({key_hint})"
    if status == 404:
        advice = "; check the model's name and the address"
    wish = headers.get("x-should-retry")
    retryable = wish == "true" if wish in {"true", "false"} else may_pass(status) and _SPENT not in code
    return EndpointError(text + advice, status=status, retryable=retryable, retry_after=retry_after(headers))


def may_pass(status: int) -> bool:
    """Whether the same request may succeed after it was answered with this status."""
    return status in _RETRYABLE or (status >= 500 and status not in _HOPELESS)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait for, which it gives as a number or as a date.

    A wish that is neither, or for more than a day, is none: nobody means it, and a pool would do without the server.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = _seconds(value, unit)
        except (ValueError, OverflowError):
            seconds = math.nan
        if seconds <= _LONGEST_WAIT:
            return max(0.0, seconds)
        _log.debug("the server sent %s: %r, which is no wait of at most %g s", name, value, _LONGEST_WAIT)
    return None


def _seconds(value: str, unit: float) -> float:
    """Return the wait that a header asks for.

    Raises:
        ValueError: It is neither a number nor a date.
        OverflowError: It is a date with numbers that no date has.
    """
    try:
        return float(value) * unit
    except ValueError:
        date = email.utils.parsedate_to_datetime(value)
    # Dates are in UTC, those too that have no zone or an unknown one (RFC 9110, section 5.6.7).
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
