"""Who is to blame where a call of a pool fails: the member, which leaves, or the request."""

from __future__ import annotations

import asyncio

import pytest

from backends import (
    BackendClosedError,
    BackendError,
    BudgetExceededError,
    CapabilityError,
    ContextLengthError,
    EndpointError,
    PromptError,
    QueueFullError,
    UnknownModelError,
    UnreachableError,
    UnusableDrawError,
)
from backends.limits import Limited, Limiter
from backends.pool import Pool

from .common import PLAIN, at, members, scripted


@pytest.mark.parametrize(
    "error",
    [
        PromptError("p"),
        CapabilityError("a"),
        UnusableDrawError("filtered"),
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


@pytest.mark.parametrize("status", [400, 500, 503])
async def test_a_request_that_all_refuse_fails_with_the_names_of_all_and_puts_nobody_out(status: int) -> None:
    one, two = members()
    for number, member in enumerate((one, two)):
        member.plan = lambda _, call, number=number: (  # type: ignore[misc]
            EndpointError(f"no such thing {number}", status=status) if call == "rollout" else None
        )
    pool = Pool([one, two])
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    for _ in range(2):
        with pytest.raises(
            EndpointError, match=r"rollout failed on all .*\(member .\): no such thing .; .*\(member"
        ) as caught:
            await pool.rollout([start], 1, seed=0)
        assert caught.value.status == status
    assert all(member.healthy for member in pool._roster.members)


@pytest.mark.parametrize("status", [400, 413, 415, 422, 500, 503])
async def test_a_request_that_only_one_refuses_puts_that_one_out(status: int) -> None:
    one, two = members()
    one.plan = at(1, EndpointError("no such parameter", status=status))
    pool = Pool([one, two])
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    await pool.rollout([start], 1, seed=0)
    assert [member.healthy for member in pool._roster.members] == [False, True]


@pytest.mark.parametrize("order", [1, -1])
async def test_the_error_says_if_and_when_to_try_again_and_a_status_that_all_gave(order: int) -> None:
    one, two = members()
    errors = EndpointError("busy", status=429, retryable=True, retry_after=7.0), EndpointError("gone", status=404)
    one.dead, two.dead = errors[::order]
    pool = Pool([one, two])
    with pytest.raises(EndpointError, match="gone") as caught:
        await pool.begin("q", max_tokens=6, params=PLAIN)
    assert (caught.value.status, caught.value.retryable, caught.value.retry_after) == (None, True, 7.0)
    assert caught.value.__cause__ is two.dead


@pytest.mark.parametrize("order", [1, -1])
async def test_what_is_worth_another_try_is_so_whichever_member_says_it(order: int) -> None:
    errors = [EndpointError("busy", status=429, retryable=True, retry_after=7.0), UnknownModelError("no such model")]
    one, two = members()
    one.dead, two.dead = errors[::order]
    with pytest.raises(EndpointError, match="busy") as caught:
        await Pool([one, two]).begin("q", max_tokens=6, params=PLAIN)
    assert (caught.value.status, caught.value.retryable, caught.value.retry_after) == (429, True, 7.0)
    assert "no such model" in str(caught.value)


async def test_a_run_that_no_other_member_can_take_over_may_be_tried_again_where_it_is() -> None:
    one, two = scripted()
    pool = Pool([one, two])
    (state,) = await pool.extend(await pool.begin("q", max_tokens=8, params=PLAIN), 1, tokens=1, seed=0)
    one.dead = EndpointError("busy", status=429, retryable=True)
    with pytest.raises(EndpointError, match=r"busy.*cannot take the run over") as caught:
        await pool.rollout([state], 1, seed=0)
    assert caught.value.retryable


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ([BackendError("lost"), UnknownModelError("gone")], BackendError),
        ([UnknownModelError("lost"), UnknownModelError("gone")], UnknownModelError),
        ([UnreachableError("lost"), UnreachableError("gone", retryable=True)], UnreachableError),
        ([UnreachableError("lost"), EndpointError("gone", status=401)], EndpointError),
        ([UnreachableError("lost"), BackendError("gone")], EndpointError),
        ([ContextLengthError("lost"), BudgetExceededError("gone")], ContextLengthError),
    ],
)
async def test_the_kind_of_the_error_does_not_depend_on_the_members_order(
    errors: list[BackendError], kind: type[BackendError], order: int
) -> None:
    one, two = members()
    one.dead, two.dead = errors[::order]
    with pytest.raises(kind, match=r"all members of the pool: .*(lost.*gone|gone.*lost)") as caught:
        await Pool([one, two]).begin("q", max_tokens=6, params=PLAIN)
    assert type(caught.value) is kind
    assert caught.value.__cause__ is two.dead


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


# Limits of a member's own

LIMITS = [QueueFullError("full"), ContextLengthError("too long"), BudgetExceededError("spent")]


@pytest.mark.parametrize("error", LIMITS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", ["begin", "rollout"])
async def test_a_member_whose_limit_is_in_the_way_is_passed_over_and_stays(call: str, error: BackendError) -> None:
    one, two = members()
    one.plan = lambda number, name: error if name == call else None
    pool = Pool([one, two])
    assert await pool.rollout([await pool.begin("q", max_tokens=6, params=PLAIN)], 1, seed=0)
    assert two.calls
    assert all(member.healthy and member.rows == 0 for member in pool._roster.members)


@pytest.mark.parametrize("error", LIMITS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", ["begin", "rollout"])
async def test_a_limit_that_is_in_the_way_everywhere_is_an_error_of_that_kind(call: str, error: BackendError) -> None:
    one, two = members()
    one.plan = two.plan = lambda number, name: error if name == call else None
    pool = Pool([one, two])
    with pytest.raises(type(error), match=f"{call} failed on all members") as caught:
        await pool.rollout([await pool.begin("q", max_tokens=6, params=PLAIN)], 1, seed=0)
    assert type(caught.value) is type(error)
    assert all(member.healthy and member.rows == 0 for member in pool._roster.members)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("error", [ContextLengthError("too long"), BudgetExceededError("spent")], ids=str)
async def test_a_limit_is_not_the_error_where_another_member_might_do_the_call_later(
    error: BackendError, order: int
) -> None:
    for broken in (EndpointError("gone", retryable=True), BackendError("lost")):
        one, two = members()
        one.dead, two.dead = [error, broken][::order]
        with pytest.raises(type(broken)) as caught:
            await Pool([one, two]).begin("q", max_tokens=6, params=PLAIN)
        assert type(caught.value) is type(broken)


async def test_a_run_whose_member_has_no_place_left_goes_on_at_one_that_is_idle() -> None:
    twins = members()
    pool = Pool([Limited(member, Limiter(1, max_queue=0)) for member in twins])
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    first, second = await asyncio.gather(*(pool.rollout([start], 3, seed=seed) for seed in (0, 1)))
    assert [member.calls.count("rollout") for member in twins] == [1, 1]
    assert first == await pool.rollout([start], 3, seed=0)
    assert second == await pool.rollout([start], 3, seed=1)


async def test_queues_that_are_all_full_are_an_error_of_that_kind_whatever_else_fails() -> None:
    one, two = members()
    one.dead, two.dead = QueueFullError("8 wait"), EndpointError("gone", status=503)
    pool = Pool([one, two])
    with pytest.raises(QueueFullError, match=r"member 1\): 8 wait; .*member 2\): gone"):
        await pool.begin("q", max_tokens=6, params=PLAIN)
    assert all(member.healthy for member in pool._roster.members)


@pytest.mark.parametrize(
    "error", [QueueFullError("full"), BudgetExceededError("spent"), PromptError("odd")], ids=lambda e: type(e).__name__
)
async def test_rows_that_were_drawn_are_kept_where_nobody_draws_the_others(error: BackendError) -> None:
    one, two = members()
    one.plan = lambda number, call: "lose" if call == "rollout" else None
    two.dead = error
    pool = Pool([one, two])
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    ((first, *others),) = await pool.rollout([start], 3, seed=4)
    assert first.finish_reason == "error"
    assert all(completion.finish_reason != "error" for completion in others)
    assert all(member.healthy for member in pool._roster.members)
