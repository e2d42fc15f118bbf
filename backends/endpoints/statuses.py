"""What HTTP statuses and headers say about sending a request again."""

from __future__ import annotations

import email.utils
import logging
import time
from collections.abc import Mapping

_log = logging.getLogger(__name__)

_RETRYABLE = frozenset({408, 409, 425, 429})
"""Statuses below 500 after which the same request may succeed."""
_HOPELESS = frozenset({501, 505})
"""Statuses from 500 on after which it cannot."""


def may_pass(status: int) -> bool:
    """Whether the same request may succeed after it was answered with this status."""
    return status in _RETRYABLE or (status >= 500 and status not in _HOPELESS)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait for, which it gives as a number or as a date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) * unit)
        except ValueError:
            pass
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            _log.debug("the server sent %s: %r, which is neither seconds nor a date", name, value)
    return None
