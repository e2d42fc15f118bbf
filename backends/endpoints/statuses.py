"""What HTTP statuses and headers say about sending a request again."""

from __future__ import annotations

import email.utils
import logging
import math
import time
from collections.abc import Mapping
from datetime import UTC

_log = logging.getLogger(__name__)

_RETRYABLE = frozenset({408, 409, 425, 429})
"""Statuses below 500 after which the same request may succeed."""
_HOPELESS = frozenset({501, 505})
"""Statuses from 500 on after which it cannot."""
_LONGEST_WAIT = 86400.0
"""Seconds."""


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
