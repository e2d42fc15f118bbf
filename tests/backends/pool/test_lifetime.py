"""A pool is made, cancelled and closed, and refuses what makes no sense."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from backends import BackendClosedError, BackendError, Capabilities, TokenizerMismatchError
from backends.enumerable import EnumerableBackend
from backends.pool import Pool
from tests.backends.faulty import FaultyBackend

from .common import PLAIN, at, guided, members, told


async def test_a_member_that_hangs_can_be_cancelled_and_nothing_is_left() -> None:
    one, two = members()
    one.plan = lambda number, call: "hang" if call == "rollout" else None
    pool = Pool([one, two])
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    call = asyncio.create_task(pool.rollout([start] * 2, 3, seed=0))
    await one.hanging.wait()
    assert pool._roster.members[0].rows == 6
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert one.under_way == 0
    assert [(member.rows, member.healthy) for member in pool._roster.members] == [(0, True)] * 2
    assert two.calls == []
    result = await guided(pool, timeout=0.05).complete("q")
    assert result.model == one.name
    assert [member.rows for member in pool._roster.members] == [0, 0]


async def test_a_call_that_is_moving_can_be_cancelled_and_made_again() -> None:
    one, two = members()
    pool = Pool([one, two])
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    drawn = await pool.extend(start, 3, tokens=2, seed=0)
    expected = await pool.rollout(drawn, 2, seed=1)
    one.die()
    two.plan = at(0, "hang")
    call = asyncio.create_task(pool.rollout(drawn, 2, seed=1))
    await two.hanging.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await pool.rollout(drawn, 2, seed=1) == expected
    assert [member.rows for member in pool._roster.members] == [0, 0]


async def test_calls_that_move_the_same_states_at_once_do_not_mix_them_up() -> None:
    one, two, three = members(3)
    pool = Pool([one, two, three])
    first, second = [await pool.begin("q", max_tokens=6, params=PLAIN) for _ in range(2)]
    ours, theirs = [await pool.extend(start, 2, tokens=2, seed=0) for start in (first, second)]
    expected = await pool.rollout([*ours, theirs[0]], 2, seed=1)
    for start, home in ((first, 1), (second, 2)):
        start.run.home = pool._roster.members[home]  # type: ignore[attr-defined]
    for member in (two, three):
        await member.begin("q", max_tokens=6, params=PLAIN)
    two.calls.clear()
    two.plan = at(1, "hang")
    moving = asyncio.create_task(pool.rollout([*ours, *theirs, *ours], 2, seed=1))
    await two.hanging.wait()  # It has moved some of them to the second member,
    await pool.rollout([*theirs, *theirs, *ours], 2, seed=1)  # and this moves them on to the third.
    two.let_go.set()
    assert (await moving)[:3] == expected


async def test_closing_closes_every_member_even_if_one_fails_to() -> None:
    one, two, three = members(3)
    one.close_error = two.close_error = RuntimeError("cannot close")
    pool = Pool([one, two, three])
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    with pytest.raises(RuntimeError, match="cannot close"):
        await pool.aclose()
    assert (one.closed, two.closed, three.closed) == (1, 1, 1), "all were waited for"
    with pytest.raises(BackendClosedError, match="pool"):
        await pool.begin("q", max_tokens=6, params=PLAIN)
    with pytest.raises(BackendClosedError, match="pool"):
        await pool.score([start], [[]])


async def test_a_pool_that_is_closed_while_it_works_says_so() -> None:
    one, two = members()
    pool = Pool([one, two])
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    one.plan = at(1, "hang")
    call = asyncio.create_task(pool.rollout([start], 3, seed=0))
    await one.hanging.wait()
    await pool.aclose()
    one.let_go.set()
    with pytest.raises(BackendClosedError, match="the pool"):
        await call
    assert two.calls == []


def test_a_pool_can_do_what_all_its_members_can() -> None:
    one, two = members()
    one.changed_capabilities = Capabilities(score=False, confidence=True)
    two.changed_capabilities = Capabilities(seed=False, confidence=True, entropy=True)
    assert Pool([one, two]).capabilities == Capabilities(score=False, seed=False, confidence=True)
    one.changed_capabilities = None
    assert Pool([one, two]).capabilities == Capabilities(seed=False), "what a member finds out later counts"


def test_a_pool_knows_its_tokens_where_all_members_do() -> None:
    one, two = members()
    assert Pool([one, two]).tokenization == one.tokenization
    two.changed_tokenization = None
    assert Pool([one, two]).tokenization is None
    assert Pool([two, one]).tokenization is None


def test_models_with_different_tokens_make_no_pool() -> None:
    one, unknown = members()
    unknown.changed_tokenization = None
    other = FaultyBackend(EnumerableBackend.random(1, letters="abcde"), name="other")
    with pytest.raises(TokenizerMismatchError, match=r"enumerable-1 and other are not the same model.*5 tokens.*6"):
        Pool([one, unknown, other])


def test_a_pool_has_its_members_name() -> None:
    one, two = members()
    assert Pool([one, two]).name == "enumerable-1"
    assert Pool([one, FaultyBackend(two.inner, name="other")]).name == "enumerable-1 + other"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"members": []}, "at least one member"),
        ({"members": "tiny/qwen3"}, "backends.load"),
        ({"members": ["tiny/qwen3"]}, "backends.load"),
        ({"first_delay": 0.0}, r"first_delay is 0.0; allowed: a finite number above 0 \(seconds\)"),
        ({"first_delay": math.nan}, "first_delay is nan"),
        ({"first_delay": math.inf}, "first_delay is inf"),
        ({"first_delay": "5"}, "first_delay is '5'"),
        ({"first_delay": None}, "first_delay is None"),
        ({"first_delay": True}, "first_delay is True"),
        ({"longest_delay": 4.0}, "longest_delay is 4.0; allowed: a finite number .* at least first_delay, which is 5"),
        ({"longest_delay": math.nan}, "longest_delay is nan"),
        ({"longest_delay": "60"}, "longest_delay is '60'"),
        ({"patience": 0}, "patience is 0; allowed: a finite number above 0"),
        ({"patience": None}, "patience is None"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        Pool(**{"members": members(), **arguments})


def test_the_same_backend_twice_is_no_pool() -> None:
    (one,) = members(1)
    with pytest.raises(BackendError, match="twice"):
        Pool([one, one])


async def test_bad_calls_are_refused_and_put_nobody_out() -> None:
    one, two = members()
    pool = Pool([one, two])
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    foreign = await one.inner.begin("q", max_tokens=6, params=PLAIN)
    with pytest.raises(BackendError, match="at least one"):
        await pool.extend(start, 0, tokens=1, seed=0)
    with pytest.raises(BackendError, match="at least one"):
        await pool.extend(start, 1, tokens=0, seed=0)
    with pytest.raises(BackendError, match="at least one"):
        await pool.rollout([start], 0, seed=0)
    wrong: Any = "2"
    with pytest.raises(BackendError, match="not '2' of 1"):
        await pool.extend(start, wrong, tokens=1, seed=0)
    with pytest.raises(BackendError, match="not 1 of '2'"):
        await pool.extend(start, 1, tokens=wrong, seed=0)
    with pytest.raises(BackendError, match="not '2'"):
        await pool.rollout([start], wrong, seed=0)
    with pytest.raises(BackendError, match="a list of completions for each state, not 0 for 1"):
        await pool.score([start], [])
    with pytest.raises(BackendError, match="a list of completions for each state, not 1 for 0"):
        await pool.score([], [[]])
    with pytest.raises(BackendError, match="of another backend"):
        await pool.rollout([foreign], 1, seed=0)
    assert all(member.healthy for member in pool._roster.members)


async def test_changing_the_messages_afterwards_does_not_change_the_run() -> None:
    one, two = members()
    pool = Pool([one, two])
    message = {"role": "user", "content": "q"}
    start = await pool.begin([message], max_tokens=6, params=PLAIN)
    message["content"] = ""
    one.die()
    assert await pool.rollout([start], 1, seed=0), "it is begun again elsewhere with what it was begun with"


def test_a_pool_serves_several_event_loops_one_after_another() -> None:
    one, two = members()
    pool = Pool([one, two])
    first = asyncio.run(_complete(pool))
    one.die()
    assert asyncio.run(_complete(pool)) == first


async def _complete(pool: Pool) -> dict[str, Any]:
    return told(await guided(pool).complete("q"))
