"""Where a pool's calls go: runs stay where they are, spread evenly, and give the same answer."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from backends import Backend, BackendError, Completion, Prompt
from backends.enumerable import EnumerableBackend
from backends.local import LocalBackend
from backends.pool import Pool
from ets_agent import Result
from tests.backends.conformance import CHECKS, Check
from tests.backends.faulty import FaultyBackend

from .common import LETTERS, PLAIN, QUESTION, guided, members, told


@pytest.fixture(params=["enumerable", "enumerable diffusion", "local", "local chat"])
async def subject(request: pytest.FixtureRequest) -> tuple[Backend, Prompt]:
    if request.param.startswith("enumerable"):
        diffusion = request.param.endswith("diffusion")
        twins: list[Backend] = [
            FaultyBackend(EnumerableBackend.random(1, letters=LETTERS, diffusion=diffusion)) for _ in range(2)
        ]
        return Pool(twins), "a question"
    parts = request.getfixturevalue("tiny_parts")
    twins = [LocalBackend(*parts, name="tiny") for _ in range(2)]
    return Pool(twins), QUESTION if request.param == "local" else [{"role": "user", "content": QUESTION}]


@pytest.mark.parametrize("law", CHECKS, ids=lambda law: law.__name__)
async def test_a_pool_obeys(law: Check, subject: tuple[Backend, Prompt]) -> None:
    backend, prompt = subject
    async with backend:
        await law(backend, prompt)


@pytest.mark.parametrize("law", CHECKS, ids=lambda law: law.__name__)
async def test_a_pool_obeys_also_while_its_members_take_turns_to_fail(law: Check) -> None:
    """Every third call fails, at whichever member, so runs move all the time."""
    count = itertools.count()
    twins = [
        FaultyBackend(
            EnumerableBackend.random(1, letters=LETTERS),
            lambda number, call: BackendError("down") if next(count) % 3 == 2 else None,
        )
        for _ in range(2)
    ]
    await law(Pool(twins), "a question")


async def test_a_run_stays_at_its_member() -> None:
    one, two = members()
    await guided(Pool([one, two])).complete("q")
    assert one.calls == ["begin", "extend", "rollout", "extend", "rollout", "extend", "rollout", "extend"]
    assert two.calls == []


async def test_runs_in_turn_go_to_the_members_in_turn() -> None:
    pool_members = members(3)
    pool = Pool(pool_members)
    for _ in range(6):
        await pool.begin("q", max_tokens=4, params=PLAIN)
    assert [member.calls for member in pool_members] == [["begin", "begin"]] * 3


async def test_a_run_begins_where_the_fewest_rows_are_under_way() -> None:
    one, two = members()
    pool = Pool([one, two])
    start = await pool.begin("q", max_tokens=4, params=PLAIN)
    other = await pool.begin("q", max_tokens=4, params=PLAIN)
    one.plan = two.plan = lambda number, call: "hang" if call != "begin" else None
    calls = [
        asyncio.create_task(pool.extend(start, 5, tokens=1, seed=0)),
        asyncio.create_task(pool.rollout([other, other], 3, seed=0)),
    ]
    await one.hanging.wait()
    await two.hanging.wait()
    for _ in range(4):
        await pool.begin("q", max_tokens=4, params=PLAIN)
    assert (one.calls.count("begin"), two.calls.count("begin")) == (1 + 4, 1), "5 rows against 2 times 3"
    opening = asyncio.create_task(pool.begin("q", max_tokens=4, params=PLAIN))
    await asyncio.sleep(0)
    assert [member.rows for member in pool._roster.members] == [6, 6], "to begin counts as one"
    await opening
    more = asyncio.create_task(pool.score([start], [[Completion(text="a", token_ids=(0,))] * 2]))
    while one.under_way < 2:
        await asyncio.sleep(0)
    assert [member.rows for member in pool._roster.members] == [7, 6]
    await pool.begin("q", max_tokens=4, params=PLAIN)
    assert two.calls.count("begin") == 2, "7 rows against 6"
    for member in (one, two):
        member.let_go.set()
    await asyncio.gather(*calls, more)
    assert [member.rows for member in pool._roster.members] == [0, 0]


async def test_concurrent_runs_spread_evenly() -> None:
    pool_members = members(3)
    results = await guided(Pool(pool_members)).complete_many(["q"] * 30, concurrency=30)
    assert all(isinstance(result, Result) for result in results)
    begun = [member.calls.count("begin") for member in pool_members]
    assert sum(begun) == 30
    assert min(begun) >= 8, "runs begin in turns, so some are further on when others choose"


async def test_states_of_several_runs_in_one_call_go_to_one_member_in_their_order() -> None:
    """A row's seed depends on its state's place in the call, so a call is never split."""
    one, two = members()
    alone: Backend = EnumerableBackend.random(1, letters=LETTERS)
    pool: Backend = Pool([one, two])
    starts = [await backend.begin("q", max_tokens=6, params=PLAIN) for backend in [pool, pool, alone]]
    drawn = [
        await b.extend(s, 4, tokens=2, seed=n) for b, s, n in zip([pool, pool, alone], starts, (1, 2, 1), strict=True)
    ]
    theirs = await alone.extend(starts[2], 4, tokens=2, seed=2)
    mixed = [drawn[0][0], drawn[1][0], drawn[1][1], drawn[0][1], drawn[1][2]]
    expected = [drawn[2][0], theirs[0], theirs[1], drawn[2][1], theirs[2]]
    rolled = await pool.rollout(mixed, 3, seed=7)
    assert rolled == await alone.rollout(expected, 3, seed=7)
    assert (one.calls.count("rollout"), two.calls.count("rollout")) == (0, 1), "most of the states were there"
    scores = await pool.score(mixed, rolled)
    assert scores == [[completion.logprob for completion in group] for group in rolled]
    assert await pool.rollout([], 3, seed=7) == []
    assert await pool.score([], []) == []


async def test_the_same_seed_gives_the_same_answer_whichever_member_serves() -> None:
    one, two = members()
    pool = Pool([one, two])
    first, second = [await guided(pool).complete("q") for _ in range(2)]
    assert one.calls == two.calls != []
    assert told(first) == told(second) == told(await guided(EnumerableBackend.random(1, letters=LETTERS)).complete("q"))
