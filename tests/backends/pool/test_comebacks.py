"""Members of a pool that failed: when they are tried again, and how they come back."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence

import pytest

from backends import BackendError, EndpointError, State
from backends.pool import Pool
from ets_agent import Result
from tests.backends.faulty import FaultyBackend

from .common import PLAIN, at, guided, members, scripted, told


async def test_a_member_that_failed_is_tried_again_when_its_time_has_come(clock: Callable[[float], None]) -> None:
    one, two = members()
    pool = Pool([one, two], first_delay=5.0)
    one.die()
    await guided(pool).complete("q")
    clock(4.9)
    await guided(pool).complete("q")
    assert one.calls == ["begin"]
    one.recover()
    clock(0.1)
    await guided(pool).complete("q")
    assert one.calls[1:] == ["begin", "extend", "rollout", "extend", "rollout", "extend", "rollout", "extend"]
    assert pool._roster.members[0].healthy


async def test_the_wait_doubles_up_to_the_longest(clock: Callable[[float], None]) -> None:
    one, two = members()
    pool = Pool([one, two], first_delay=5.0, longest_delay=12.0)
    one.die()
    await pool.begin("q", max_tokens=6, params=PLAIN)
    for tries, wait in enumerate((5.0, 10.0, 12.0, 12.0), start=1):
        clock(wait - 0.5)
        await pool.begin("q", max_tokens=6, params=PLAIN)
        assert len(one.calls) == tries
        clock(0.5)
        await pool.begin("q", max_tokens=6, params=PLAIN)
        assert len(one.calls) == tries + 1
    one.recover()
    clock(12.0)
    await guided(pool).complete("q")
    one.die()
    with_one = [await pool.begin("q", max_tokens=6, params=PLAIN) for _ in range(2)]
    assert with_one
    tries = len(one.calls)
    clock(5.0)
    await pool.begin("q", max_tokens=6, params=PLAIN)
    assert len(one.calls) == tries + 1, "a member that has worked again starts anew"


async def test_a_server_that_names_a_time_is_not_tried_before(clock: Callable[[float], None]) -> None:
    one, two = members()
    pool = Pool([one, two], first_delay=5.0, longest_delay=60.0)
    one.plan = at(0, EndpointError("busy", status=429, retry_after=90.0))
    await pool.begin("q", max_tokens=6, params=PLAIN)
    clock(89.0)
    await pool.begin("q", max_tokens=6, params=PLAIN)
    assert len(one.calls) == 1
    clock(1.0)
    await pool.begin("q", max_tokens=6, params=PLAIN)
    assert len(one.calls) == 2


@pytest.mark.parametrize("wish", [1e6, math.inf])
async def test_a_server_that_asks_for_more_than_an_hour_is_tried_after_an_hour(
    wish: float, clock: Callable[[float], None]
) -> None:
    one, two = members()
    pool = Pool([one, two])
    one.plan = at(0, EndpointError("busy", status=429, retry_after=wish))
    await pool.begin("q", max_tokens=6, params=PLAIN)
    clock(3599.0)
    await pool.begin("q", max_tokens=6, params=PLAIN)
    assert len(one.calls) == 1
    clock(1.0)
    await pool.begin("q", max_tokens=6, params=PLAIN)
    assert len(one.calls) == 2


async def test_one_call_tries_a_member_while_the_others_go_elsewhere(clock: Callable[[float], None]) -> None:
    one, two = members()
    pool = Pool([one, two], first_delay=5.0, patience=1000.0)
    one.plan = lambda number, call: BackendError("down") if number == 0 else "hang" if number == 1 else None
    await pool.begin("q", max_tokens=6, params=PLAIN)
    clock(5.0)
    probe = asyncio.create_task(pool.begin("q", max_tokens=6, params=PLAIN))
    await one.hanging.wait()
    clock(100.0)
    for _ in range(3):
        await pool.begin("q", max_tokens=6, params=PLAIN)
    assert len(one.calls) == 2, "however long the one takes that tries it"
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    await pool.begin("q", max_tokens=6, params=PLAIN)
    assert len(one.calls) == 3, "a try that was cancelled is tried again"


async def test_to_begin_is_no_proof_that_a_member_works(clock: Callable[[float], None]) -> None:
    one, two = members()
    pool = Pool([one, two], first_delay=5.0)
    one.plan = at(0, BackendError("down"))
    await pool.begin("q", max_tokens=6, params=PLAIN)
    clock(5.0)
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    assert one.calls == ["begin", "begin"]
    await pool.begin("q", max_tokens=6, params=PLAIN)
    assert len(one.calls) == 2, "one run at a time"
    one.die()
    await pool.extend(start, 2, tokens=1, seed=0)
    assert one.calls[2:] == ["extend"]
    clock(9.9)
    await pool.begin("q", max_tokens=6, params=PLAIN)
    assert len(one.calls) == 3, "it has failed twice in a row"


async def test_members_that_fail_many_calls_at_once_fail_once(clock: Callable[[float], None]) -> None:
    one, two = members()
    pool = Pool([one, two], first_delay=5.0)
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    one.die()
    await asyncio.gather(*(pool.extend(start, 2, tokens=1, seed=seed) for seed in range(5)))
    assert one.calls.count("extend") == 5
    clock(5.0)
    one.recover()
    await pool.begin("q", max_tokens=6, params=PLAIN)
    assert one.calls.count("begin") == 2


async def test_a_call_that_began_before_the_failure_does_not_bring_a_member_back() -> None:
    one, two = members()
    pool = Pool([one, two])
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    one.plan = at(1, "hang")
    slow = asyncio.create_task(pool.extend(start, 2, tokens=1, seed=0))
    await one.hanging.wait()
    one.plan = at(2, BackendError("down"))
    await pool.extend(start, 2, tokens=1, seed=0)
    one.let_go.set()
    await slow
    assert not pool._roster.members[0].healthy


async def test_a_member_that_names_a_time_each_time_is_not_waited_for_longer_and_longer(
    clock: Callable[[float], None],
) -> None:
    """A replica that is loading its model says so, and the tries meanwhile are no failures."""
    one, two = members()
    pool = Pool([one, two], first_delay=5.0)
    one.dead = EndpointError("loading", retryable=True, retry_after=1.0)
    for tries in range(1, 8):
        await pool.begin("q", max_tokens=6, params=PLAIN)
        assert len(one.calls) == tries
        clock(4.9)
        await pool.begin("q", max_tokens=6, params=PLAIN)
        assert len(one.calls) == tries
        clock(0.1)
    one.die()
    await pool.begin("q", max_tokens=6, params=PLAIN)
    clock(5.0)
    await pool.begin("q", max_tokens=6, params=PLAIN)
    assert len(one.calls) == 9, "this is its first failure"


async def test_leaving_is_a_warning_and_coming_back_is_told(
    clock: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="backends.pool")
    one, two = members()
    one.inner._name = "first"  # type: ignore[attr-defined]
    one = FaultyBackend(one.inner)
    pool = Pool([one, two], first_delay=5.0)
    one.plan = at(0, BackendError("connection refused"))
    await guided(pool).complete("q")
    clock(5.0)
    await guided(pool).complete("q")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "first leaves the pool and is tried again in 5 s: connection refused"),
        ("INFO", "first is back in the pool"),
    ]


async def test_many_runs_survive_members_that_come_and_go(clock: Callable[[float], None]) -> None:
    pool_members = members(3)
    for shift, member in enumerate(pool_members[:2]):  # One always works, lest a call has bad luck everywhere.
        member.plan = lambda number, call, shift=shift: (  # type: ignore[misc]
            BackendError("down") if (number + 5 * shift) % 11 == 10 else None
        )
    expected = await guided(members(1)[0]).complete_many(["q"] * 40, concurrency=1)
    pool = Pool(pool_members, first_delay=0.5)

    async def time_passes() -> None:
        while True:
            clock(0.1)
            await asyncio.sleep(0)

    passing = asyncio.create_task(time_passes())
    found = await guided(pool).complete_many(["q"] * 40, concurrency=12)
    passing.cancel()
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Result)
        assert isinstance(other, Result)
        assert told(one) == told(other)
    assert all(member.rows == member.trials == 0 for member in pool._roster.members)
    assert all(len(member.calls) > 20 for member in pool_members), "those that failed came back"


# Where runs are then


async def served(pool: Pool, runs: Sequence[State], *, at_once: bool = True) -> None:
    """Make a call of every run."""
    if at_once:
        await asyncio.gather(*(pool.extend(run, 1, tokens=1, seed=0) for run in runs))
    else:
        for run in runs:
            await pool.extend(run, 1, tokens=1, seed=0)


async def extended(pool: Pool, pool_members: Sequence[FaultyBackend], runs: Sequence[State]) -> list[int]:
    """How many calls each member gets when every run makes one."""
    before = [member.calls.count("extend") for member in pool_members]
    await served(pool, runs)
    return [member.calls.count("extend") - count for member, count in zip(pool_members, before, strict=True)]


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one after the other"])
async def test_runs_are_spread_evenly_again_after_all_members_were_out(
    clock: Callable[[float], None], at_once: bool
) -> None:
    pool_members = members(4)
    pool = Pool(pool_members)
    runs = [await pool.begin("q", max_tokens=8, params=PLAIN) for _ in range(40)]
    for member in pool_members:
        member.die()
    failures = await asyncio.gather(*(pool.extend(run, 1, tokens=1, seed=0) for run in runs), return_exceptions=True)
    assert all(isinstance(failure, BackendError) for failure in failures)
    for member in pool_members:
        member.recover()
    await served(pool, runs, at_once=at_once)
    for _ in range(3):
        clock(60.0)
        await served(pool, runs)
    assert all(member.healthy for member in pool._roster.members)
    assert await extended(pool, pool_members, runs) == [10, 10, 10, 10]


async def test_members_that_were_out_when_runs_began_get_their_share_later(clock: Callable[[float], None]) -> None:
    pool_members = members(4)
    pool = Pool(pool_members)
    for member in pool_members[1:]:
        member.die()
    runs = [await pool.begin("q", max_tokens=8, params=PLAIN) for _ in range(40)]
    assert await extended(pool, pool_members, runs) == [40, 0, 0, 0]
    for member in pool_members:
        member.recover()
    clock(60.0)
    for _ in range(3):
        await served(pool, runs)
    assert await extended(pool, pool_members, runs) == [10, 10, 10, 10]
    assert await extended(pool, pool_members, runs) == [10, 10, 10, 10], "and there they stay"
    assert all(member.calls.count("begin") <= 1 + 40 // 4 for member in pool_members[1:]), "each has moved once"


async def test_calls_are_shared_among_members_that_are_all_out() -> None:
    pool_members = members(3)
    pool = Pool(pool_members)
    for member in pool_members:
        member.die()
    with pytest.raises(BackendError):
        await pool.begin("q", max_tokens=8, params=PLAIN)
    for member in pool_members:
        member.recover()
        member.calls.clear()
    await asyncio.gather(*(pool.begin("q", max_tokens=8, params=PLAIN) for _ in range(30)))
    assert [len(member.calls) for member in pool_members] == [10, 10, 10]


async def test_a_run_that_finds_out_that_a_member_is_still_out_goes_back_home(clock: Callable[[float], None]) -> None:
    one, two = members()
    pool = Pool([one, two], first_delay=5.0)
    start, other = [await pool.begin("q", max_tokens=8, params=PLAIN) for _ in range(2)]
    one.die()
    await pool.extend(start, 1, tokens=1, seed=0)
    clock(5.0)
    await pool.extend(other, 1, tokens=1, seed=0)
    assert one.calls == ["begin", "extend", "begin"], "one call has tried it"
    assert two.calls == ["begin", "begin", "extend", "extend"]
    await pool.extend(other, 1, tokens=1, seed=0)
    assert one.calls == ["begin", "extend", "begin"]


async def test_while_one_call_tries_a_member_the_others_of_its_run_go_on_at_home(
    clock: Callable[[float], None],
) -> None:
    one, two = members()
    pool = Pool([one, two], first_delay=5.0)
    one.plan = lambda number, call: BackendError("down") if number == 0 else "hang" if call == "extend" else None
    start = await pool.begin("q", max_tokens=8, params=PLAIN)
    clock(5.0)
    calls = [asyncio.create_task(pool.extend(start, 1, tokens=1, seed=seed)) for seed in range(3)]
    await one.hanging.wait()
    async with asyncio.timeout(20):
        await asyncio.gather(*calls[1:])
    assert (one.calls.count("extend"), two.calls.count("extend")) == (1, 2)
    one.let_go.set()
    await calls[0]
    assert pool._roster.members[0].healthy
    await pool.extend(start, 1, tokens=1, seed=0)
    assert one.calls.count("extend") == 2, "it has moved there"


async def test_a_member_that_cannot_take_a_run_over_is_not_tried_with_every_call(
    clock: Callable[[float], None],
) -> None:
    one, two = scripted()
    pool = Pool([one, two], first_delay=5.0)
    one.dead = BackendError("down")
    (state,) = await pool.extend(await pool.begin("q", max_tokens=8, params=PLAIN), 1, tokens=1, seed=0)
    one.recover()
    clock(5.0)
    for seed in range(4):
        await pool.rollout([state], 1, seed=seed)
    assert one.calls == ["begin", "begin"], "one call has found out"
    assert two.calls.count("rollout") == 4


@pytest.mark.parametrize("failed", [[0], [1], [0, 1]], ids=["another run", "this run", "both"])
async def test_a_run_goes_on_where_it_was_after_all_members_were_out(failed: list[int]) -> None:
    one, two = members()
    pool = Pool([one, two])
    runs = [await pool.begin("q", max_tokens=8, params=PLAIN) for _ in range(2)]
    one.die()
    two.die()
    for number in failed:
        with pytest.raises(BackendError):
            await pool.extend(runs[number], 1, tokens=1, seed=0)
    one.recover()
    two.recover()
    one.calls.clear()
    await pool.extend(runs[1], 1, tokens=1, seed=0)
    assert one.calls == []


async def test_of_several_members_that_are_due_a_run_tries_its_own(clock: Callable[[float], None]) -> None:
    one, two = members()
    pool = Pool([one, two])
    first, second = [await pool.begin("q", max_tokens=8, params=PLAIN) for _ in range(2)]
    one.die()
    two.die()
    with pytest.raises(BackendError):
        await pool.extend(first, 1, tokens=1, seed=0)
    clock(60.0)
    one.recover()
    two.recover()
    await pool.extend(second, 1, tokens=1, seed=0)
    assert [member.healthy for member in pool._roster.members] == [False, True]


async def test_a_run_that_began_after_a_comeback_does_not_move(clock: Callable[[float], None]) -> None:
    one, two = members()
    pool = Pool([one, two], first_delay=5.0)
    one.plan = at(0, BackendError("down"))
    await pool.begin("q", max_tokens=8, params=PLAIN)
    clock(5.0)
    await guided(pool).complete("q")
    assert pool._roster.members[0].healthy
    runs = [await pool.begin("q", max_tokens=8, params=PLAIN) for _ in range(4)]
    start, other = [run for run in runs if run.place.member.backend is two]  # type: ignore[attr-defined]
    two.plan = lambda number, call: "hang" if call == "rollout" else None
    busy = asyncio.create_task(pool.rollout([other], 5, seed=0))
    await two.hanging.wait()
    one.calls.clear()
    await pool.extend(start, 1, tokens=1, seed=0)
    assert one.calls == []
    two.let_go.set()
    await busy


async def test_a_run_that_has_tried_a_member_looks_for_those_that_are_due_like_others(
    clock: Callable[[float], None],
) -> None:
    one, two = members()
    pool = Pool([one, two], first_delay=5.0)
    one.plan = at(0, BackendError("down"))
    await pool.begin("q", max_tokens=8, params=PLAIN)
    clock(5.0)
    start = await pool.begin("q", max_tokens=8, params=PLAIN)
    one.die()
    await pool.extend(start, 1, tokens=1, seed=0)
    assert two.calls[-1] == "extend"
    one.recover()
    clock(60.0)
    await pool.extend(start, 1, tokens=1, seed=0)
    assert pool._roster.members[0].healthy


async def test_a_member_that_is_due_and_answers_with_an_error_is_asked_once_in_a_call(
    clock: Callable[[float], None],
) -> None:
    """It stays due while nobody else does the call."""
    one, two = members()
    pool = Pool([one, two], first_delay=5.0)
    one.plan = at(0, BackendError("down"))
    await pool.begin("q", max_tokens=8, params=PLAIN)
    clock(5.0)
    one.dead = two.dead = EndpointError("too odd", status=500)
    with pytest.raises(EndpointError, match="failed on all"):
        await pool.begin("odd", max_tokens=8, params=PLAIN)
    assert (len(one.calls), len(two.calls)) == (2, 2)
