from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from backends import BackendError, BudgetExceededError, Completion, EndpointError, Prompt, SamplingParams, State
from backends.enumerable import EnumerableBackend
from backends.limits import Limited
from backends.metering import BackendUsage, Metered, TokenBudget
from backends.pool import Pool
from backends.scripted import ScriptedBackend
from backends.wrapper import BackendWrapper

from .faulty import FaultyBackend

PLAIN = SamplingParams()
FOUR = ScriptedBackend(["a b c"])
"""Every response has four tokens, the last of which ends it."""


class Held(BackendWrapper):
    """Keeps draws and scores waiting until they are let go, and notes how many wait."""

    def __init__(self, inner: Any = FOUR) -> None:
        super().__init__(inner)
        self.go = asyncio.Event()
        self.under_way = 0
        self.failure: Exception | None = None

    async def _wait(self) -> None:
        self.under_way += 1
        try:
            await self.go.wait()
        finally:
            self.under_way -= 1
        if self.failure is not None:
            raise self.failure

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        await self._wait()
        return await super().extend(state, n, tokens=tokens, seed=seed)

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        await self._wait()
        return await super().rollout(states, n, seed=seed)

    async def score(self, states: Sequence[State], completions: Sequence[Sequence[Completion]]) -> list[list[float]]:
        await self._wait()
        return await super().score(states, completions)


async def _call(backend: Metered, state: State, kind: str) -> object:
    """Draw twice, six or twelve tokens at the most."""
    if kind == "extend":
        return await backend.extend(state, 2, tokens=3, seed=0)
    return await backend.rollout([state], 2, seed=0)


async def _turns(times: int = 8) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def test_calls_and_tokens_are_counted_by_kind() -> None:
    backend = Metered(FOUR)
    assert backend.usage == BackendUsage()
    start = await backend.begin("a question", max_tokens=10, params=PLAIN)
    states = await backend.extend(start, 3, tokens=2, seed=0)
    drawn = await backend.rollout(states, 5, seed=1)
    await backend.score(states, [drawn[0], drawn[1][:1], []])
    usage = backend.usage
    assert usage == BackendUsage(calls=4, candidate_tokens=3 * 2, rollout_tokens=15 * 2, scoring_tokens=6 * 2)
    assert usage.total_tokens == 48
    await backend.extend(states[0], 2, tokens=9, seed=0)
    assert backend.usage.candidate_tokens == 6 + 2 * 2
    assert usage.candidate_tokens == 6, "usage is a snapshot"


async def test_finished_states_cost_nothing() -> None:
    backend = Metered(FOUR, 4)
    start = await backend.begin("a question", max_tokens=10, params=PLAIN)
    (final,) = await backend.extend(start, 1, tokens=9, seed=0)
    assert backend.budget is not None
    assert backend.budget.spent == 4
    assert await backend.extend(final, 3, tokens=5, seed=0) == [final] * 3
    assert len(await backend.rollout([final], 3, seed=0)) == 1
    assert await backend.score([final], [[]]) == [[]]
    assert backend.usage == BackendUsage(calls=5, candidate_tokens=4)


async def test_a_spent_budget_refuses_every_call() -> None:
    backend = Metered(FOUR, 4)
    start = await backend.begin("a question", max_tokens=10, params=PLAIN)
    ((drawn,),) = await backend.rollout([start], 1, seed=0)
    calls: list[Callable[[], Any]] = [
        lambda: backend.begin("a question", max_tokens=10, params=PLAIN),
        lambda: backend.extend(start, 1, tokens=1, seed=0),
        lambda: backend.rollout([start], 1, seed=0),
        lambda: backend.score([start], [[drawn]]),
    ]
    usage = backend.usage
    for call in calls:
        with pytest.raises(BudgetExceededError) as caught:
            await call()
        assert str(caught.value) == "the budget of 4 tokens is spent (4 were used); nothing more was sent"
    assert backend.usage == usage


async def test_a_budget_of_none_left_begins_nothing() -> None:
    with pytest.raises(BudgetExceededError, match="the budget of 0 tokens is spent"):
        await Metered(FOUR, 0).begin("a question", max_tokens=10, params=PLAIN)


async def test_the_most_that_a_call_may_use_is_set_aside() -> None:
    held = Held()
    backend = Metered(held, 1000)
    budget = backend.budget
    assert budget is not None
    held.go.set()
    start = await backend.begin("a question", max_tokens=10, params=PLAIN)
    (one,) = await backend.extend(start, 1, tokens=1, seed=0)
    (final,) = await backend.extend(start, 1, tokens=10, seed=0)
    ((drawn,),) = await backend.rollout([one], 1, seed=0)
    spent = budget.spent
    held.go.clear()
    expected: list[tuple[Callable[[], Any], int]] = [
        (lambda: backend.extend(one, 3, tokens=4, seed=0), 3 * 4),
        (lambda: backend.extend(one, 3, tokens=100, seed=0), 3 * 9),
        (lambda: backend.extend(final, 3, tokens=4, seed=0), 0),
        (lambda: backend.rollout([start, one, final], 2, seed=0), 2 * (10 + 9)),
        (lambda: backend.score([one, one], [[drawn, drawn], [drawn]]), 3 * 3),
    ]
    for call, most in expected:
        task = asyncio.create_task(call())
        await _turns()
        assert (held.under_way, budget.reserved) == (1, most)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (budget.reserved, budget.spent) == (0, spent)


async def test_runs_of_different_lengths_set_aside_what_is_theirs() -> None:
    held = Held()
    backend = Metered(held, 1000)
    short, long = [await backend.begin("a question", max_tokens=most, params=PLAIN) for most in (5, 50)]
    task = asyncio.create_task(backend.rollout([short, long], 1, seed=0))
    await _turns()
    assert backend.budget is not None
    assert backend.budget.reserved == 55
    held.go.set()
    await task


async def test_adopted_states_are_known_as_well() -> None:
    inner = EnumerableBackend.random(1, letters="abcd")
    reference, budget = Metered(inner), TokenBudget(1000)
    held = Held(inner)
    proposal = Metered(held, budget)
    start = await reference.begin("a question", max_tokens=5, params=PLAIN)
    twin = await proposal.begin("a question", max_tokens=5, params=PLAIN)
    drawn = [state for state in await reference.extend(start, 3, tokens=2, seed=0) if not state.finished]
    task = asyncio.create_task(proposal.rollout(proposal.adopt(twin, drawn), 1, seed=0))
    await _turns()
    assert budget.reserved == 3 * len(drawn)
    held.go.set()
    await task


async def test_what_was_not_used_is_given_back() -> None:
    backend = Metered(FOUR, 1000)
    start = await backend.begin("a question", max_tokens=100, params=PLAIN)
    await backend.rollout([start], 3, seed=0)
    assert backend.budget is not None
    assert (backend.budget.spent, backend.budget.reserved) == (12, 0)


async def test_a_call_waits_while_those_under_way_may_use_up_the_budget() -> None:
    held = Held()
    backend = Metered(held, 20)
    budget = backend.budget
    assert budget is not None
    start = await backend.begin("a question", max_tokens=10, params=PLAIN)
    tasks = [asyncio.create_task(backend.rollout([start], 1, seed=seed)) for seed in range(4)]
    await _turns()
    assert (held.under_way, budget.reserved, budget.waiting) == (2, 20, 2)
    held.go.set()
    await asyncio.gather(*tasks)
    assert (budget.spent, budget.reserved, budget.waiting) == (16, 0, 0)


async def test_those_who_wait_are_refused_once_the_budget_is_spent() -> None:
    held = Held()
    backend = Metered(held, 8)
    start = await backend.begin("a question", max_tokens=4, params=PLAIN)
    tasks = [asyncio.create_task(backend.rollout([start], 1, seed=seed)) for seed in range(5)]
    await _turns()
    assert held.under_way == 2
    held.go.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [list, list] + [BudgetExceededError] * 3
    assert backend.usage == BackendUsage(calls=3, rollout_tokens=8)


async def test_the_budget_is_exceeded_by_less_than_one_call() -> None:
    backend = Metered(FOUR, 5)
    start = await backend.begin("a question", max_tokens=4, params=PLAIN)
    results = await asyncio.gather(
        *(backend.rollout([start], 3, seed=seed) for seed in range(9)), return_exceptions=True
    )
    assert [type(result) for result in results] == [list] + [BudgetExceededError] * 8
    assert backend.usage.total_tokens == 12


async def test_a_failed_call_gives_back_what_it_had_set_aside() -> None:
    held = Held()
    held.failure = EndpointError("the server is gone")
    held.go.set()
    backend = Metered(held, 20)
    start = await backend.begin("a question", max_tokens=10, params=PLAIN)
    with pytest.raises(EndpointError, match="gone"):
        await backend.extend(start, 2, tokens=4, seed=0)
    assert backend.budget is not None
    assert (backend.budget.reserved, backend.budget.spent) == (0, 0)
    assert backend.usage == BackendUsage(calls=2), "the call was made, what it drew is not known"


async def test_a_call_cancelled_while_it_waits_costs_nothing() -> None:
    held = Held()
    backend = Metered(held, 10)
    start = await backend.begin("a question", max_tokens=10, params=PLAIN)
    first, second, third = (asyncio.create_task(backend.rollout([start], 1, seed=seed)) for seed in range(3))
    await _turns()
    assert backend.budget is not None
    assert backend.budget.waiting == 2
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert backend.budget.waiting == 1
    held.go.set()
    await asyncio.gather(first, third)
    assert (backend.budget.spent, backend.budget.reserved) == (8, 0)
    assert backend.usage.calls == 3


async def test_backends_may_share_a_budget_and_keep_counts_of_their_own() -> None:
    budget = TokenBudget(20)
    one, other = Metered(FOUR, budget), Metered(ScriptedBackend(["x"]), budget)
    for backend in (one, other):
        start = await backend.begin("a question", max_tokens=10, params=PLAIN)
        await backend.rollout([start], 2, seed=0)
    assert (one.usage.total_tokens, other.usage.total_tokens, budget.spent) == (8, 4, 12)


@hypothesis.given(
    limit=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    kinds=st.lists(st.sampled_from(["extend", "rollout", "cancelled", "failed"]), min_size=1, max_size=12),
)
def test_budgets_hold_whatever_runs_at_once(limit: int, seed: int, kinds: list[str]) -> None:
    class Slow(ScriptedBackend):
        async def _work(self) -> None:
            await _turns(rng.randrange(5))
            if rng.random() < 0.2:
                raise EndpointError("no luck")

    rng = random.Random(seed)

    async def check() -> None:
        backend = Metered(Slow(["a", "a b c", "a b c d e f"]), limit)
        budget = backend.budget
        assert budget is not None
        start = await backend.begin("a question", max_tokens=6, params=PLAIN)
        tasks = []
        for kind in kinds:
            call = (
                backend.extend(start, 2, tokens=3, seed=0) if kind == "extend" else backend.rollout([start], 2, seed=0)
            )
            tasks.append(asyncio.create_task(call))
            await _turns(rng.randrange(3))
            assert budget.reserved + budget.spent < limit + 12
            if kind == "cancelled":
                rng.choice(tasks).cancel()
        async with asyncio.timeout(20):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        allowed = (list, asyncio.CancelledError, EndpointError, BudgetExceededError)
        assert all(isinstance(result, allowed) for result in results)
        assert not any(isinstance(result, BudgetExceededError) for result in results) or budget.spent >= limit
        assert (budget.reserved, budget.waiting) == (0, 0)
        assert budget.spent == backend.usage.total_tokens < limit + 12

    asyncio.run(check())


@pytest.fixture
def restless_threads() -> Iterator[None]:
    """Let threads take turns between almost any two instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless_threads")
def test_threads_count_together() -> None:
    budget = TokenBudget(4 * 4 * 50)
    backend = Metered(ScriptedBackend(["a b c"]), budget)
    failures: list[BaseException] = []

    async def many() -> None:
        start = await backend.begin("a question", max_tokens=4, params=PLAIN)
        await asyncio.gather(*(backend.rollout([start], 1, seed=seed) for seed in range(50)))

    def work() -> None:
        try:
            asyncio.run(many())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert backend.usage == BackendUsage(calls=204, rollout_tokens=800)
    assert (budget.spent, budget.reserved, budget.waiting) == (800, 0, 0)


class _Text(BackendWrapper):
    """Tells only the number of a rollout's tokens, like an endpoint that gives text; every second draw fails."""

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        groups = await super().rollout(states, n, seed=seed)
        for state, group in zip(states, groups, strict=True):
            group[:] = [replace(one, token_ids=(), token_count=len(one.token_ids)) for one in group]
            group[1::2] = [Completion(text=state.text, finish_reason="error") for _ in group[1::2]]
        return groups


async def test_rollouts_that_tell_the_number_of_their_tokens_count_as_such() -> None:
    backend = Metered(_Text(FOUR), 1000)
    start = await backend.begin("a question", max_tokens=10, params=PLAIN)
    (middle,) = await backend.extend(start, 1, tokens=1, seed=0)
    (final,) = await backend.extend(start, 1, tokens=4, seed=0)
    await backend.rollout([start, middle, final], 4, seed=0)
    assert backend.usage.rollout_tokens == 2 * 4 + 2 * 3


async def test_states_of_elsewhere_are_counted_when_they_are_drawn() -> None:
    backend = Metered(FOUR, 1000)
    start = await FOUR.begin("a question", max_tokens=10, params=PLAIN)
    await backend.rollout(await backend.extend(start, 2, tokens=2, seed=0), 1, seed=0)
    assert backend.budget is not None
    assert (backend.budget.spent, backend.budget.reserved) == (8, 0)


@pytest.mark.parametrize("limit", [-1, 1.5, True, "many"])
def test_a_budget_that_is_none_is_refused(limit: Any) -> None:
    with pytest.raises(BackendError, match=r"a token budget of .* is not possible; allowed: a whole"):
        Metered(FOUR, limit)


def test_one_budget_twice_in_one_stack_is_refused() -> None:
    budget = TokenBudget(10)
    inner = Limited(Metered(FOUR, budget), 1)
    with pytest.raises(BackendError, match="within has the same token budget"):
        Metered(inner, budget)
    assert Metered(inner, TokenBudget(10)).inner is inner
    assert Metered(Limited(Metered(FOUR), 1)).budget is None


def test_one_budget_around_a_pool_and_within_it_is_refused() -> None:
    """A call would wait for what it has set aside itself."""
    budget = TokenBudget(10)
    pool = Pool([Metered(ScriptedBackend(["x"]), budget), Limited(Metered(ScriptedBackend(["x"]), budget), 1)])
    with pytest.raises(BackendError, match="within has the same token budget"):
        Metered(Limited(pool, 1), budget)
    assert Metered(pool, TokenBudget(10)).inner is pool


async def test_a_budget_on_the_members_of_a_pool_counts_what_is_drawn_twice() -> None:
    """The pool has a call of which a row was lost done again at another member."""
    budget = TokenBudget(1000)
    one, two = [FaultyBackend(ScriptedBackend(["a b c"])) for _ in range(2)]
    one.plan = lambda number, call: "lose" if call == "rollout" else None
    pool = Metered(Pool([Metered(one, budget), Metered(two, budget)]))
    start = await pool.begin("a question", max_tokens=10, params=PLAIN)
    await pool.rollout([start], 3, seed=0)
    assert (pool.usage.rollout_tokens, budget.spent) == (3 * 4, 2 * 4 + 3 * 4)


async def test_notes_of_states_do_not_pile_up() -> None:
    backend = Metered(FOUR)
    for _ in range(50):
        start = await backend.begin("a question", max_tokens=10, params=PLAIN)
        await backend.extend(start, 5, tokens=1, seed=0)
    assert len(backend._max_tokens) <= 1


async def test_a_prompt_that_is_refused_is_a_call_that_failed() -> None:
    backend = Metered(FOUR, 10)
    bad: Prompt = ""
    with pytest.raises(BackendError):
        await backend.begin(bad, max_tokens=10, params=PLAIN)
    assert backend.usage == BackendUsage(calls=1)
