"""A pool of endpoints: runs stay where they are, survive the loss of members, and give the same answer."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import logging
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from backends import (
    Backend,
    BackendClosedError,
    BackendError,
    BudgetExceededError,
    Capabilities,
    CapabilityError,
    Completion,
    ContextLengthError,
    EndpointError,
    Prompt,
    PromptError,
    QueueFullError,
    SamplingParams,
    State,
    TokenizerMismatchError,
    UnknownModelError,
)
from backends.enumerable import EnumerableBackend
from backends.local import LocalBackend
from backends.pool import Pool
from backends.scripted import ScriptedBackend
from ets_agent import ETS, Result
from rewards import Reward
from tests.enumeration import Valued

from .conformance import CHECKS, Check
from .faulty import Fault, FaultyBackend

QUESTION = "Will has 41 tickets. Ada gives Will another 72. How many tickets does Will have now?"
PLAIN = SamplingParams()
LETTERS = "abcd"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """The time by which members are tried again; call it to let seconds pass."""
    now = [1000.0]
    monkeypatch.setattr("backends._pool_members.monotonic", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


def members(count: int = 2, *, seed: int = 1) -> list[FaultyBackend]:
    """Members that share nothing but the model."""
    return [FaultyBackend(EnumerableBackend.random(seed, letters=LETTERS)) for _ in range(count)]


def scripted(count: int = 2) -> list[FaultyBackend]:
    """Members that cannot go on from each other's states."""
    return [FaultyBackend(ScriptedBackend(["one two three four five six"])) for _ in range(count)]


def at(number: int, fault: Fault) -> Callable[[int, str], Fault]:
    """A plan: the call of this number fails, all others work."""
    return lambda call, name: fault if call == number else None


def told(result: Result, *, rounded: bool = False) -> dict[str, Any]:
    """All that a result says, but for the time that it took, and for what depends on rounding in a batch."""
    left_out: Any = {"steps": {"__all__": {"rollouts": {"__all__": {"__all__": {"logprob"}}}}}} if rounded else {}
    return result.model_dump(exclude={"usage": {"seconds"}, **left_out})


def guided(backend: Backend, **settings: Any) -> ETS:
    chosen = {"num_candidates": 4, "num_rollouts": 3, "block_size": 2, "max_tokens": 8, "seed": 5} | settings
    return ETS(backend, Valued(), **chosen)


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


# Where calls go


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


# A member that fails


@pytest.mark.parametrize("num_chains", [1, 3])
@pytest.mark.parametrize(
    "fault", [BackendError("down"), EndpointError("500", status=500), "lose", "lose last"], ids=str
)
async def test_a_member_that_dies_at_any_call_costs_nothing(fault: Fault, num_chains: int) -> None:
    expected = told(await guided(members(1)[0], num_chains=num_chains).complete("q"))
    whole = members()
    assert told(await guided(Pool(whole), num_chains=num_chains).complete("q")) == expected
    for death in range(len(whole[0].calls)):
        one, two = members()
        one.plan = lambda number, call, death=death: fault if number >= death else None  # type: ignore[misc]
        assert told(await guided(Pool([one, two]), num_chains=num_chains).complete("q")) == expected, death
        if isinstance(fault, BaseException):
            assert len(one.calls) <= death + num_chains, "nothing goes where something failed"
            assert two.calls
        assert one.under_way == two.under_way == 0


@pytest.mark.parametrize("role", ["reference", "proposal"])
async def test_reference_and_proposal_survive_the_loss_of_members(role: str) -> None:
    async def run(reference: Backend, proposal: Backend) -> dict[str, Any]:
        ets = ETS(reference, Valued(), proposal, num_candidates=4, num_rollouts=3, block_size=2, max_tokens=8, seed=5)
        return told(await ets.complete("q"))

    def proposals() -> list[FaultyBackend]:
        model = EnumerableBackend.random(1, letters=LETTERS)
        return [FaultyBackend(model.perturbed(0.5, seed=2)) for _ in range(2)]

    whole = (members(), proposals())
    expected = await run(members(1)[0], proposals()[0])
    assert await run(Pool(whole[0]), Pool(whole[1])) == expected
    for death in range(len(whole[role == "proposal"][0].calls)):
        references, cheap = members(), proposals()
        failing = (references if role == "reference" else cheap)[0]
        failing.plan = lambda number, call, death=death: BackendError("down") if number >= death else None  # type: ignore[misc]
        assert await run(Pool(references), Pool(cheap)) == expected, death


class Answers(Reward):
    """Counts the digits, so that candidates differ."""

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        return [sum(letter in "13579" for letter in completion.text) / 10 for completion in completions]


async def test_a_local_model_goes_on_at_another_member(tiny_parts: Any) -> None:
    async def run(backend: Backend) -> dict[str, Any]:
        ets = ETS(backend, Answers(), num_candidates=3, num_rollouts=2, block_size=8, max_tokens=40, temperature=1.3)
        return told(await ets.complete(QUESTION, seed=3), rounded=True)

    async with FaultyBackend(LocalBackend(*tiny_parts, name="tiny")) as alone:
        expected = await run(alone)
    assert len(alone.calls) > 6
    for death in range(len(alone.calls)):
        one, two = [FaultyBackend(LocalBackend(*tiny_parts, name="tiny")) for _ in range(2)]
        one.plan = lambda number, call, death=death: BackendError("down") if number >= death else None  # type: ignore[misc]
        async with Pool([one, two]) as pool:
            assert await run(pool) == expected, death
        assert two.calls


async def test_confidence_is_kept_when_a_run_moves(tiny_parts: Any) -> None:
    one, two = twins = [FaultyBackend(LocalBackend(*tiny_parts, name="tiny")) for _ in range(2)]
    async with Pool(twins) as pool:
        start = await pool.begin(QUESTION, max_tokens=20, params=SamplingParams(confidence=True))
        drawn = await pool.extend(start, 3, tokens=6, seed=0)
        before = await pool.rollout(drawn, 2, seed=1)
        one.die()
        after = await pool.rollout(drawn, 2, seed=1)
        assert two.calls
        for group, again in zip(before, after, strict=True):
            for completion, moved in zip(group, again, strict=True):
                assert moved.token_ids == completion.token_ids
                assert completion.confidence is not None
                assert moved.confidence is not None
                assert moved.confidence.num_tokens == completion.confidence.num_tokens
                assert moved.confidence.logprob == pytest.approx(completion.confidence.logprob, abs=1e-3)


async def test_states_do_not_change_when_their_run_moves() -> None:
    one, two = members()
    pool = Pool([one, two])
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    drawn = await pool.extend(start, 3, tokens=2, seed=0)
    known = [(hash(state), repr(state)) for state in drawn]
    twins = await pool.extend(start, 3, tokens=2, seed=0)
    one.die()
    await pool.rollout(drawn, 1, seed=1)
    assert drawn == twins
    assert [(hash(state), repr(state)) for state in drawn] == known
    assert [hash(state) for state in twins] == [hash(state) for state in drawn]
    assert await pool.extend(start, 3, tokens=2, seed=0) == drawn


async def test_a_state_moves_once_and_its_old_place_is_dropped() -> None:
    one, two = members()
    for member in (one, two):  # The model of this test keeps no states of its own.
        member.inner = LastingOnlyOutside(member.inner)
    pool = Pool([one, two])
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    drawn = await pool.extend(start, 3, tokens=2, seed=0)
    old = [weakref.ref(state.place.own) for state in drawn]  # type: ignore[attr-defined]
    one.plan = lambda number, call: BackendError("down")  # Another one each time: an error keeps frames alive.
    await pool.rollout(drawn, 1, seed=1)
    gc.collect()
    assert [ref() for ref in old] == [None] * 3
    await pool.rollout(drawn, 1, seed=2)
    await pool.extend(drawn[0], 2, tokens=1, seed=3)
    assert two.calls == ["begin", "rollout", "rollout", "extend"]


class LastingOnlyOutside(FaultyBackend):
    """Hands out copies of the states."""

    def _made(self, state: State) -> State:
        return super()._made(dataclasses.replace(state))

    def _check(self, states: Sequence[State]) -> None:
        pass


async def test_chains_of_one_run_move_together() -> None:
    one, two, three = members(3)
    one.plan = lambda number, call: BackendError("down") if number >= 3 else None
    await guided(Pool([one, two, three]), num_chains=3).complete("q")
    assert not (two.calls and three.calls)


async def test_a_member_that_only_cannot_be_asked_at_the_beginning_is_passed_over() -> None:
    one, two = members()
    one.die()
    pool = Pool([one, two])
    for _ in range(3):
        await guided(pool).complete("q")
    assert one.calls == ["begin"]


async def test_what_a_member_loses_of_a_rollout_another_one_draws() -> None:
    one, two, three = members(3)
    one.plan = at(1, "lose")
    two.plan = at(1, "lose last")
    pool = Pool([one, two, three])
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    alone = EnumerableBackend.random(1, letters=LETTERS)
    expected = await alone.rollout([await alone.begin("q", max_tokens=6, params=PLAIN)] * 2, 3, seed=4)
    assert await pool.rollout([start, start], 3, seed=4) == expected
    assert three.calls == [], "both together had every row"
    assert [member.healthy for member in pool._roster.members] == [False, True, True]
    assert await pool.rollout([start, start], 3, seed=4) == expected
    assert one.calls == ["begin", "rollout"]


async def test_rows_that_all_members_lose_come_back_as_they_are() -> None:
    one, _, three = pool_members = members(3)
    for member in pool_members:
        member.plan = lambda number, call: "lose" if call == "rollout" else None
    three.plan = lambda number, call: BackendError("down")
    pool = Pool(pool_members)
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    ((first, *others),) = await pool.rollout([start], 3, seed=4)
    assert first.finish_reason == "error"
    assert all(completion.finish_reason != "error" for completion in others)
    assert [member.healthy for member in pool._roster.members] == [True, True, False], "nobody did better than another"
    one.recover()
    ((first, *others),) = await pool.rollout([start], 3, seed=4)
    assert first.finish_reason != "error"


async def test_runs_of_members_that_cannot_adopt_can_still_begin_again_elsewhere() -> None:
    one, two = scripted()
    pool = Pool([one, two])
    start = await pool.begin("q", max_tokens=10, params=PLAIN)
    one.die()
    ((rolled,),) = await pool.rollout([start], 1, seed=0)
    assert rolled.text == "one two three four five six"


async def test_a_run_that_no_other_member_can_take_over_says_so() -> None:
    one, two = scripted()
    pool = Pool([one, two])
    start = await pool.begin("q", max_tokens=10, params=PLAIN)
    (state,) = await pool.extend(start, 1, tokens=2, seed=0)
    one.die()
    with pytest.raises(
        CapabilityError, match=r"member 1\): connection refused; .*member 2\): cannot take the run over"
    ):
        await pool.rollout([state], 1, seed=0)
    assert pool._roster.members[1].healthy
    one.recover()
    ((rolled,),) = await pool.rollout([state], 1, seed=0)
    assert rolled.text == "one two three four five six", "its own member is tried where no other one can"


async def test_a_finished_state_needs_no_member() -> None:
    one, two = members()
    pool = Pool([one, two])
    (final,) = await pool.extend(await pool.begin("q", max_tokens=1, params=PLAIN), 1, tokens=1, seed=0)
    one.die()
    two.die()
    assert await pool.extend(final, 3, tokens=1, seed=0) == [final] * 3


async def test_a_begin_that_one_refuses_and_another_takes_puts_the_first_out() -> None:
    one, two = members()
    one.plan = at(0, EndpointError("no such parameter", status=400))
    pool = Pool([one, two])
    await pool.begin("q", max_tokens=6, params=PLAIN)
    assert [member.healthy for member in pool._roster.members] == [False, True]


async def test_a_member_that_does_better_stays_and_the_worse_one_leaves() -> None:
    """None of them draws all rows, but the second one draws some that the first one lost."""
    one, two, three = pool_members = members(3)
    one.plan = lambda number, call: "lose" if call == "rollout" else None
    two.plan = lambda number, call: "lose last" if call == "rollout" else None
    three.plan = lambda number, call: BackendError("down")
    pool = Pool(pool_members)
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    for member in (one, two):
        inner = member.inner
        member.inner = LosesMiddle(inner)
    ((first, middle, last),) = await pool.rollout([start], 3, seed=4)
    assert (first.finish_reason == "error", middle.finish_reason, last.finish_reason == "error") == (
        False,
        "error",
        False,
    )
    assert [member.healthy for member in pool._roster.members] == [False, True, False]


class LosesMiddle(FaultyBackend):
    """Loses the second row of every state."""

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        drawn = await self.inner.rollout(states, n, seed=seed)
        return [[a, dataclasses.replace(b, finish_reason="error"), *rest] for a, b, *rest in drawn]


async def test_a_try_that_loses_rows_does_not_bring_a_member_back(clock: Callable[[float], None]) -> None:
    one, two = members()
    pool = Pool([one, two], retry_after=5.0)
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    one.plan = lambda number, call: BackendError("down") if number == 1 else "lose" if number == 2 else None
    await pool.begin("q", max_tokens=6, params=PLAIN)
    third = await pool.begin("q", max_tokens=6, params=PLAIN)
    assert two.calls == ["begin", "begin"]
    clock(5.0)
    first = pool._roster.members[0]
    assert (await pool.rollout([start], 2, seed=0))[0][0].finish_reason != "error"
    assert not first.healthy
    assert first.failures == 2
    assert await pool.rollout([third], 2, seed=0)


async def test_a_run_tries_its_own_member_again_when_the_time_has_come(clock: Callable[[float], None]) -> None:
    """Its caches are there: another run's failure put the member out."""
    one, two = members()
    pool = Pool([one, two], retry_after=5.0)
    first, _, third = [await pool.begin("q", max_tokens=6, params=PLAIN) for _ in range(3)]
    one.plan = at(2, BackendError("down"))
    await pool.extend(first, 2, tokens=1, seed=0)
    clock(5.0)
    await pool.extend(third, 2, tokens=1, seed=0)
    assert one.calls == ["begin", "begin", "extend", "extend"]
    assert pool._roster.members[0].healthy


async def test_members_that_cannot_share_tokens_go_on_from_each_others_texts() -> None:
    """What is adopted is the other pool's member's own state, which may know more than its tokens."""
    seen: list[State] = []

    class Textual(FaultyBackend):
        def adopt(self, state: State, others: Sequence[State]) -> list[State]:
            seen.extend(others)
            return super().adopt(state, others)

    def textual() -> Pool:
        return Pool([Textual(EnumerableBackend.random(1, letters=LETTERS)) for _ in range(2)])

    reference, proposal = textual(), textual()
    drawn = await reference.extend(await reference.begin("q", max_tokens=6, params=PLAIN), 2, tokens=2, seed=0)
    proposal.adopt(await proposal.begin("q", max_tokens=6, params=PLAIN), drawn)
    assert [type(state).__name__ for state in seen] == ["EnumerableState"] * 2


# Errors that are not a member's


@pytest.mark.parametrize(
    "error",
    [
        PromptError("p"),
        ContextLengthError("c"),
        CapabilityError("a"),
        BudgetExceededError("b"),
        QueueFullError("q"),
        ValueError("v"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("call", ["begin", "rollout"])
async def test_an_error_that_another_member_would_give_too_comes_back_at_once(error: Exception, call: str) -> None:
    one, two = members()
    one.plan = lambda number, name: error if name == call else None
    pool = Pool([one, two])
    with pytest.raises(type(error)) as caught:
        await pool.rollout([await pool.begin("q", max_tokens=6, params=PLAIN)], 1, seed=0)
    assert caught.value is error
    assert two.calls == []
    assert all(member.healthy and member.rows == 0 for member in pool._roster.members)


@pytest.mark.parametrize(
    "error", [BackendClosedError("closed"), UnknownModelError("404"), EndpointError("401", status=401)]
)
async def test_an_error_that_is_the_members_own_makes_it_leave(error: BackendError) -> None:
    one, two = members()
    one.dead = error
    pool = Pool([one, two])
    await pool.begin("q", max_tokens=6, params=PLAIN)
    assert [member.healthy for member in pool._roster.members] == [False, True]


async def test_a_request_that_all_refuse_fails_with_the_names_of_all_and_puts_nobody_out() -> None:
    one, two = members()
    for number, member in enumerate((one, two)):
        member.plan = lambda _, call, number=number: (  # type: ignore[misc]
            EndpointError(f"no such thing {number}", status=400) if call == "rollout" else None
        )
    pool = Pool([one, two])
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    for _ in range(2):
        with pytest.raises(
            EndpointError, match=r"rollout failed on all .*\(member .\): no such thing .; .*\(member"
        ) as caught:
            await pool.rollout([start], 1, seed=0)
        assert caught.value.status == 400
    assert all(member.healthy for member in pool._roster.members)


@pytest.mark.parametrize("status", [400, 413, 415, 422])
async def test_a_request_that_only_one_refuses_puts_that_one_out(status: int) -> None:
    one, two = members()
    one.plan = at(1, EndpointError("no such parameter", status=status))
    pool = Pool([one, two])
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    await pool.rollout([start], 1, seed=0)
    assert [member.healthy for member in pool._roster.members] == [False, True]


async def test_the_last_error_says_if_and_when_to_try_again() -> None:
    one, two = members()
    one.dead = EndpointError("busy", status=429, retryable=True, retry_after=7.0)
    two.dead = EndpointError("gone", status=404)
    pool = Pool([one, two])
    with pytest.raises(EndpointError, match=r"busy.*gone") as caught:
        await pool.begin("q", max_tokens=6, params=PLAIN)
    assert (caught.value.status, caught.value.retryable, caught.value.retry_after) == (404, True, 7.0)
    assert caught.value.__cause__ is two.dead
    two.dead = BackendError("lost")
    with pytest.raises(BackendError, match=r"lost.*busy"):
        await pool.begin("q", max_tokens=6, params=PLAIN)


async def test_the_only_member_of_a_pool_fails_with_its_own_error() -> None:
    (one,) = members(1)
    one.die()
    with pytest.raises(BackendError) as caught:
        await Pool([one]).begin("q", max_tokens=6, params=PLAIN)
    assert caught.value is one.dead


async def test_a_pool_that_is_all_down_is_tried_again_with_every_call() -> None:
    one, two = members()
    pool = Pool([one, two])
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    one.die()
    two.die()
    for count in (1, 2, 3):
        with pytest.raises(BackendError, match="connection refused"):
            await pool.rollout([start], 1, seed=0)
        assert len(one.calls) == 1 + count, "nothing fails without being tried"
    one.recover()
    assert await pool.rollout([start], 1, seed=0)
    assert pool._roster.members[0].healthy, "the call has shown that it works again"


# Coming back


async def test_a_member_that_failed_is_tried_again_when_its_time_has_come(clock: Callable[[float], None]) -> None:
    one, two = members()
    pool = Pool([one, two], retry_after=5.0)
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
    pool = Pool([one, two], retry_after=5.0, longest_retry=12.0)
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
    pool = Pool([one, two], retry_after=5.0, longest_retry=60.0)
    one.plan = at(0, EndpointError("busy", status=429, retry_after=90.0))
    await pool.begin("q", max_tokens=6, params=PLAIN)
    clock(89.0)
    await pool.begin("q", max_tokens=6, params=PLAIN)
    assert len(one.calls) == 1
    clock(1.0)
    await pool.begin("q", max_tokens=6, params=PLAIN)
    assert len(one.calls) == 2


async def test_one_call_tries_a_member_while_the_others_go_elsewhere(clock: Callable[[float], None]) -> None:
    one, two = members()
    pool = Pool([one, two], retry_after=5.0)
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
    pool = Pool([one, two], retry_after=5.0)
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
    pool = Pool([one, two], retry_after=5.0)
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


async def test_leaving_is_a_warning_and_coming_back_is_told(
    clock: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="backends.pool")
    one, two = members()
    one.inner._name = "first"  # type: ignore[attr-defined]
    one = FaultyBackend(one.inner)
    pool = Pool([one, two], retry_after=5.0)
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
    pool = Pool(pool_members, retry_after=0.5)

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


# Cancellation, closing, construction


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
        ({"retry_after": 0.0}, "retry_after is 0.0; allowed: seconds above 0"),
        ({"retry_after": math.nan}, "retry_after"),
        ({"retry_after": math.inf}, "retry_after"),
        ({"longest_retry": 4.0}, "longest_retry is 4.0"),
        ({"longest_retry": math.nan}, "longest_retry"),
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
