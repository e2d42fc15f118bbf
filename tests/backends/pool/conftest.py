"""Fixtures of the tests of pools."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """The time by which members are tried again; call it to let seconds pass, which do not pass otherwise."""
    now = [1000.0]
    monkeypatch.setattr("backends._pool_members.monotonic", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes
