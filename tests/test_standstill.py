"""A test of time is tried again if the machine stood still, and only then."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import pytest

from tests import standstill
from tests.standstill import TOO_LONG, TRIES, Watch, again_after_a_standstill


def stand_still() -> None:
    """Let no other thread run for a while."""
    before, until = sys.getswitchinterval(), time.monotonic() + 3 * TOO_LONG
    sys.setswitchinterval(60)
    while time.monotonic() < until:
        pass
    sys.setswitchinterval(before)


class LateError(Exception):
    pass


class Tried:
    """A test that fails so many times, having stood still or not."""

    def __init__(self, failures: float) -> None:
        self.failures = failures
        self.times = 0

    def fail(self) -> str:
        self.times += 1
        if self.times <= self.failures:
            stand_still()
            raise LateError
        return "passed"


@pytest.fixture(params=[False, True], ids=["plain", "async"])
def run(request: pytest.FixtureRequest) -> Any:
    @again_after_a_standstill
    def test(tried: Tried) -> Any:
        return tried.fail()

    @again_after_a_standstill
    async def test_in_a_loop(tried: Tried) -> Any:
        return tried.fail()

    async def run(tried: Tried) -> Any:
        return await test_in_a_loop(tried) if request.param else test(tried)

    return run


def test_a_standstill_is_seen() -> None:
    with Watch() as watch:
        stand_still()
    assert watch.longest > TOO_LONG


async def test_what_fails_while_the_machine_stands_still_is_tried_again(run: Any) -> None:
    tried = Tried(2)
    assert await run(tried) == "passed"
    assert tried.times == 3


async def test_what_always_fails_fails(run: Any) -> None:
    tried = Tried(math.inf)
    with pytest.raises(LateError):
        await run(tried)
    assert tried.times == TRIES


async def test_what_fails_without_a_standstill_fails_at_once(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standstill, "TOO_LONG", math.inf)
    tried = Tried(1)
    with pytest.raises(LateError):
        await run(tried)
    assert tried.times == 1
