"""What the fake server was asked and what became of it, readable from any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_SECRET = frozenset({"authorization", "api-key", "x-api-key"})


@dataclass(slots=True, eq=False, kw_only=True)
class Record:
    """One request.

    Attributes:
        index: Its place among all requests, from 0.
        headers: In lower case, without those that carry keys.
        body: The JSON of it; None where there is none.
        fault: The kind of fault that it was given, if any.
        status: HTTP status that was sent; None where none was.
        aborted: Whether the client went away before it had the answer.
        began: Seconds of `time.monotonic`.
        ended: The same for its end; None while it is under way.
    """

    index: int
    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: Any = field(repr=False)
    fault: str | None = None
    status: int | None = None
    aborted: bool = False
    began: float = field(default_factory=time.monotonic, repr=False)
    ended: float | None = field(default=None, repr=False)


class Records:
    """All requests of a server."""

    def __init__(self) -> None:
        """Begin empty."""
        self._changed = threading.Condition(threading.RLock())
        self._records: list[Record] = []
        self._active = 0
        self._most_active = 0

    def begin(self, *, method: str, path: str, headers: Mapping[str, str], body: Any) -> Record:
        """Note a request that has arrived."""
        public = {name: value for name, value in headers.items() if name not in _SECRET}
        with self._changed:
            record = Record(index=len(self._records), method=method, path=path, headers=public, body=body)
            self._records.append(record)
            self._active += 1
            self._most_active = max(self._active, self._most_active)
            self._changed.notify_all()
        return record

    def end(self, record: Record) -> None:
        """Note that a request is over."""
        with self._changed:
            record.ended = time.monotonic()
            self._active -= 1
            self._changed.notify_all()

    def all(self, path: str | None = None) -> list[Record]:
        """Return the requests so far, in the order of arrival, those of one path if one is given."""
        with self._changed:
            return [record for record in self._records if path in (None, record.path)]

    @property
    def total(self) -> int:
        """Requests so far."""
        return len(self._records)

    @property
    def active(self) -> int:
        """Requests under way."""
        return self._active

    @property
    def most_active(self) -> int:
        """Most requests that were under way at once."""
        return self._most_active

    @property
    def aborted(self) -> int:
        """Requests whose client went away before it had the answer."""
        return sum(record.aborted for record in self.all())

    def stats(self) -> dict[str, int]:
        """Return the totals by name."""
        return {name: getattr(self, name) for name in ("total", "active", "most_active", "aborted")}

    def wait(self, condition: Callable[[Records], bool], timeout: float = 60.0) -> None:
        """Block until something is true of the records; call it in a thread from async code.

        Args:
            condition: Asked again whenever a request comes or goes.
            timeout: Seconds.

        Raises:
            TimeoutError: It did not become true.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), timeout):
                raise TimeoutError(f"not so after {timeout:g} s; requests: {self._records[-20:]}")
