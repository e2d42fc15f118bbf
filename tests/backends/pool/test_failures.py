"""Members of a pool that fail: runs go on elsewhere with the same result."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from backends import Backend, BackendError, CapabilityError, Completion, EndpointError, Prompt, SamplingParams, State
from backends.enumerable import EnumerableBackend
from backends.local import LocalBackend
from backends.pool import Pool
from ets_agent import ETS
from rewards import Reward
from tests.backends.faulty import Fault, FaultyBackend
from tests.enumeration import Valued

from .common import LETTERS, PLAIN, QUESTION, at, guided, members, scripted, told


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


async def test_a_row_that_the_server_says_is_no_answer_is_not_drawn_again_and_puts_nobody_out() -> None:
    one, two = members()
    one.plan = at(1, "filter")
    pool = Pool([one, two])
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    ((first, *others),) = await pool.rollout([start], 3, seed=4)
    assert (first.finish_reason, first.final) == ("error", True)
    assert all(completion.finish_reason != "error" for completion in others)
    assert two.calls == []
    assert all(member.healthy for member in pool._roster.members)


async def test_of_rows_that_failed_only_those_are_drawn_again_that_were_lost() -> None:
    one, two = members()
    pool = Pool([one, two])
    inner = one.inner
    one.inner = FaultyBackend(inner, lambda number, call: "filter" if call == "rollout" else None)
    one.plan = at(1, "lose last")
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    ((first, *others),) = await pool.rollout([start], 3, seed=4)
    assert (first.finish_reason, first.final) == ("error", True), "a row of the other member would be a biased draw"
    assert all(completion.finish_reason != "error" for completion in others)
    assert two.calls == ["begin", "rollout"]


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
    pool = Pool([one, two], first_delay=5.0)
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
    pool = Pool([one, two], first_delay=5.0)
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
