"""Members of a pool that hang: a call of theirs that ends only by being given up is no reason to stay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from backends import BackendError, EndpointError, State
from backends.pool import Pool
from tests.backends.faulty import Fault, FaultyBackend

from .common import PLAIN, guided, members

Clock = Callable[[float], None]


def hangs(number: int, call: str) -> Fault:
    """What a machine without power does, but for `begin`, which needs no request with some servers."""
    return None if call == "begin" else "hang"


async def hanging(member: FaultyBackend, call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A call that has got as far as to hang at a member."""
    member.hanging.clear()
    task = asyncio.create_task(call)
    async with asyncio.timeout(60):
        await member.hanging.wait()
    return task


async def given_up(task: asyncio.Task[Any]) -> None:
    """End a call as a run's time limit does."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def begun(pool: Pool) -> Coroutine[Any, Any, State]:
    return pool.begin("q", max_tokens=8, params=PLAIN)


async def test_a_member_that_hangs_leaves_when_a_call_of_it_is_given_up(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = members()
    pool = Pool([one, two], patience=30.0)
    one.plan = hangs
    run = await hanging(one, guided(pool).complete("q"))
    clock(30.0)
    await given_up(run)
    assert "leaves the pool and is tried again in 5 s: it has left its calls without an answer for 30 s" in caplog.text
    for _ in range(4):
        await guided(pool).complete("q")
    assert one.calls == ["begin", "extend"]
    one.recover()
    clock(5.0)
    await guided(pool).complete("q")
    assert pool._roster.members[0].healthy


async def test_a_member_that_hangs_already_when_a_run_begins_leaves_too(clock: Clock) -> None:
    one, two = members()
    pool = Pool([one, two], patience=30.0)
    one.plan = lambda number, call: "hang"
    opening = await hanging(one, begun(pool))
    clock(30.0)
    await given_up(opening)
    assert [member.healthy for member in pool._roster.members] == [False, True]


async def test_calls_that_are_given_up_soon_put_a_member_out_together(clock: Clock) -> None:
    """Runs with a time limit below the pool's patience see no answer either."""
    one, two = members()
    pool = Pool([one, two], patience=30.0)
    start = await begun(pool)
    one.plan = hangs
    for _ in range(3):
        assert pool._roster.members[0].healthy
        clock(1000.0)  # It has nothing to answer meanwhile.
        call = await hanging(one, pool.extend(start, 1, tokens=1, seed=0))
        clock(10.0)
        await given_up(call)
    assert not pool._roster.members[0].healthy
    assert await pool.extend(start, 1, tokens=1, seed=0), "the run goes on elsewhere"


async def test_many_calls_that_are_given_up_at_once_count_once(clock: Clock) -> None:
    one, two = members()
    pool = Pool([one, two], patience=30.0)
    start = await begun(pool)
    one.plan = hangs
    calls = [await hanging(one, pool.extend(start, 1, tokens=1, seed=seed)) for seed in range(5)]
    clock(10.0)
    await given_up(calls.pop())
    assert pool._roster.members[0].healthy, "10 s that five calls have waited are 10 s"
    clock(20.0)
    for call in calls:
        await given_up(call)
    assert (pool._roster.members[0].failures, pool._roster.members[0].calls) == (1, 0)


@pytest.mark.parametrize("answer", [None, EndpointError("odd", status=500)], ids=["done", "refused"])
async def test_a_slow_member_that_answers_other_calls_stays(answer: Fault, clock: Clock) -> None:
    one, two = members()
    pool = Pool([one, two], patience=30.0)
    start = await begun(pool)
    one.plan = two.plan = lambda number, call: "hang" if call == "rollout" else answer if call == "extend" else None
    long = await hanging(one, pool.rollout([start], 3, seed=0))
    for seed in range(4):
        clock(25.0)
        try:
            await pool.extend(start, 1, tokens=1, seed=seed)
        except EndpointError:
            assert answer is not None
    assert one.calls.count("extend") == 4, "the run stays at home"
    await given_up(long)
    assert pool._roster.members[0].healthy


async def test_to_begin_is_no_sign_of_life(clock: Clock) -> None:
    one, two = members()
    pool = Pool([one, two], patience=30.0)
    starts = [await begun(pool) for _ in range(2)]
    one.plan = two.plan = hangs
    long = await hanging(one, pool.rollout([starts[0]], 1, seed=0))
    busy = await hanging(two, pool.rollout([starts[1]], 5, seed=0))
    clock(20.0)
    await begun(pool)
    assert one.calls.count("begin") == 2
    clock(10.0)
    await given_up(long)
    assert not pool._roster.members[0].healthy
    await given_up(busy)


async def test_new_runs_go_elsewhere_while_a_call_has_no_answer(clock: Clock) -> None:
    one, two = members()
    pool = Pool([one, two], patience=30.0)
    first, second = await begun(pool), await begun(pool)
    one.plan = two.plan = lambda number, call: "hang" if call == "rollout" else None
    silent = await hanging(one, pool.rollout([first], 1, seed=0))
    clock(29.0)
    busy = await hanging(two, pool.rollout([second], 5, seed=0))
    await begun(pool)
    assert (one.calls.count("begin"), two.calls.count("begin")) == (2, 1), "the less busy one"
    clock(1.0)
    for _ in range(3):
        await begun(pool)
    assert (one.calls.count("begin"), two.calls.count("begin")) == (2, 4)
    await pool.extend(first, 1, tokens=1, seed=0)
    assert two.calls[-1] == "extend", "nor do calls of runs that are at home there wait with the others"
    assert pool._roster.members[0].healthy, "its call may go on"
    one.let_go.set()
    await silent
    await begun(pool)
    assert one.calls.count("begin") == 3, "it has answered"
    await given_up(busy)


async def test_runs_stay_at_home_where_all_members_take_long(clock: Clock) -> None:
    one, two = members()
    pool = Pool([one, two], patience=30.0)
    first, second = await begun(pool), await begun(pool)
    one.plan = two.plan = lambda number, call: "hang" if call == "rollout" else None
    calls = [
        await hanging(one, pool.rollout([first], 5, seed=0)),
        await hanging(two, pool.rollout([second], 1, seed=0)),
    ]
    clock(30.0)
    await pool.extend(first, 1, tokens=1, seed=0)
    assert one.calls[-1] == "extend"
    for call in calls:
        await given_up(call)


async def test_the_wait_doubles_while_a_member_goes_on_hanging(clock: Clock) -> None:
    """However soon the call is given up that tries it: it has answered nothing since."""
    one, two = members()
    pool = Pool([one, two], first_delay=5.0, patience=30.0)
    one.plan = lambda number, call: "hang"
    opening = await hanging(one, begun(pool))
    clock(30.0)
    await given_up(opening)
    for tries, wait in enumerate((5.0, 10.0, 20.0), start=1):
        clock(wait - 0.5)
        await begun(pool)
        assert len(one.calls) == tries
        clock(0.5)
        await given_up(await hanging(one, begun(pool)))
        assert len(one.calls) == tries + 1


async def test_a_member_that_failed_otherwise_has_its_patience_still(clock: Clock) -> None:
    one, two = members()
    pool = Pool([one, two], first_delay=5.0, patience=30.0)
    one.plan = lambda number, call: BackendError("down") if number == 0 else "hang"
    await begun(pool)
    clock(5.0)
    await given_up(await hanging(one, begun(pool)))
    assert pool._roster.members[0].failures == 1
    assert pool._roster.members[0].due
