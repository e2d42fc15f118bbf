"""Pools of servers some of which are down when they are opened, and join later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

import backends
from backends import Backend, BackendClosedError, BackendError, Capabilities, CapabilityError, EndpointError, Pool
from backends._pool_opening import Connect, connect_pool
from backends.retries import RetryPolicy
from backends.service import Service, service_of
from ets_agent import ETS
from tests.backends.faulty import FaultyBackend
from tests.fake_server import FakeServer, ScriptedModel, kept_port

from .common import PLAIN, guided, members, told

DOWN = EndpointError("connection refused")
QUICK = RetryPolicy(attempts=1)


class Server:
    """What connecting to a server finds, which a test may change."""

    def __init__(self, found: FaultyBackend | BaseException) -> None:
        self.found = found
        self.connections = 0
        self.gate = asyncio.Event()
        """Cleared by a test to keep a connection from being made."""
        self.gate.set()
        self.stubborn = False
        """Whether the connection is made all the same when it is given up."""

    async def connect(self) -> Backend:
        self.connections += 1
        await asyncio.sleep(0)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            if not self.stubborn:
                raise
        if isinstance(self.found, BaseException):
            raise self.found
        return self.found


def opened(*servers: Server) -> asyncio.Task[Pool]:
    named: list[tuple[str, Connect]] = [(f"server {i}", server.connect) for i, server in enumerate(servers, start=1)]
    return asyncio.create_task(connect_pool(named))


async def test_a_pool_opens_without_a_server_that_is_down(
    clock: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    one, two = members()
    expected = told(await guided(members(1)[0]).complete("q"))
    late = Server(DOWN)
    pool = await opened(late, Server(two))
    assert "server 1 is down, and joins the pool when it works: connection refused" in caplog.text
    assert (pool.capabilities, pool.tokenization) == (two.capabilities, two.tokenization)
    assert pool.name == "server 1 + enumerable-1"
    for _ in range(3):
        assert told(await guided(pool).complete("q"))["text"] == expected["text"]
    assert late.connections == 1, "it is not due yet"
    clock(5.0)
    await guided(pool).complete("q")
    assert late.connections == 2
    late.found = one
    clock(10.0)
    assert told(await guided(pool).complete("q"))["text"] == expected["text"]
    assert (late.connections, one.calls[0]) == (3, "begin")
    assert all(member.healthy for member in pool._roster.members)
    await pool.aclose()
    assert (one.closed, two.closed) == (1, 1)


async def test_a_server_that_joins_takes_over_runs(clock: Callable[[float], None]) -> None:
    one, two = members()
    late = Server(DOWN)
    pool = await opened(Server(one), late)
    start = await pool.begin("q", max_tokens=6, params=PLAIN)
    drawn = await pool.extend(start, 2, tokens=2, seed=0)
    expected = await pool.rollout(drawn, 2, seed=1)
    late.found = two
    one.die()
    assert await pool.rollout(drawn, 2, seed=1) == expected
    assert await pool.score(drawn, expected)
    assert two.calls == ["begin", "rollout", "score"]


async def test_a_pool_without_any_server_that_works_is_not_opened() -> None:
    with pytest.raises(EndpointError, match="connection refused"):
        await opened(Server(DOWN), Server(EndpointError("wait", status=503)))


@pytest.mark.parametrize("error", [EndpointError("no key", status=401), BackendError("no such model")])
async def test_a_server_that_answers_but_cannot_be_used_is_an_error(error: BackendError) -> None:
    (one,) = members(1)
    with pytest.raises(type(error), match=str(error)):
        await opened(Server(one), Server(DOWN), Server(error))
    assert one.closed == 1


async def test_a_server_that_hangs_does_not_keep_a_pool_from_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends._pool_opening.DEFAULT_PATIENCE", 0.01)
    (one,) = members(1)
    asked = asyncio.Event()
    dropped = asyncio.Event()

    async def connect() -> Backend:
        try:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError
        finally:
            dropped.set()

    async def connect_after_it() -> Backend:
        await asked.wait()
        return one

    pool = await connect_pool([("hangs", connect), ("works", connect_after_it)])
    assert dropped.is_set()
    await pool.begin("q", max_tokens=6, params=PLAIN)
    assert one.calls == ["begin"]


@pytest.mark.parametrize("difference", ["capabilities", "tokens", "unknown tokens", "an error of the request's kind"])
async def test_a_server_that_is_unlike_the_others_stays_out(
    difference: str, clock: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    one, two = members()
    late = Server(DOWN)
    pool = await opened(Server(one), late)
    late.found = two
    if difference == "capabilities":
        two.changed_capabilities, expected = Capabilities(score=False), "it lacks score, which the others have"
    elif difference == "tokens":
        assert one.tokenization is not None
        two.changed_tokenization = FaultyBackend(
            backends.enumerable.EnumerableBackend.random(1, letters="xyz")
        ).tokenization
        expected = "it is not the same model as the others"
    elif difference == "unknown tokens":
        two.changed_tokenization, expected = None, "its tokens are not known"
    else:
        late.found, expected = CapabilityError("no such dialect"), "server 2 cannot join the pool: no such dialect"
    clock(5.0)
    await guided(pool).complete("q")
    assert late.connections == 2
    assert expected in caplog.text
    assert [member.healthy for member in pool._roster.members] == [True, False]
    assert two.closed == isinstance(late.found, FaultyBackend)
    assert pool.capabilities == one.capabilities


async def test_one_call_connects_while_the_others_are_told_to_come_again() -> None:
    one, two = members()
    late = Server(DOWN)
    pool = await opened(Server(one), late)
    one.die()
    late.found = two
    outcomes = await asyncio.gather(
        *(pool.begin("q", max_tokens=6, params=PLAIN) for _ in range(3)), return_exceptions=True
    )
    assert late.connections == 2
    assert two.calls == ["begin"]
    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert len(refused) == 2
    assert all(isinstance(error, EndpointError) and error.retryable for error in refused)


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_pool_that_is_closed_while_a_server_joins_gives_that_up_and_closes_it(stubborn: bool) -> None:
    one, two = members()
    late = Server(DOWN)
    pool = await opened(Server(one), late)
    one.die()
    late.found = two
    call = asyncio.create_task(pool.begin("q", max_tokens=6, params=PLAIN))
    late.gate.clear()
    late.stubborn = stubborn
    while late.connections < 2:
        await asyncio.sleep(0)
    await pool.aclose()
    with pytest.raises(BackendClosedError):
        await asyncio.wait_for(call, 30)  # The gate stays shut.
    assert two.closed == stubborn


async def test_a_server_that_has_not_joined_is_of_the_others_service() -> None:
    one, two = members()
    one.service = Service(provider="vllm", model="m", host="one", port=80)  # type: ignore[attr-defined]
    two.service = Service(provider="vllm", model="m", host="two", port=80)  # type: ignore[attr-defined]
    late = Server(DOWN)
    pool = await opened(Server(one), late)
    assert service_of(pool.parts[1]) == service_of(pool) == Service(provider="vllm", model="m")
    late.found = two
    one.die()
    await pool.begin("q", max_tokens=6, params=PLAIN)
    assert service_of(pool.parts[1]) == two.service  # type: ignore[attr-defined]


async def test_a_pool_that_cannot_be_opened_closes_all_servers_whatever_closing_one_raises() -> None:
    one, two = members()
    one.close_error = RuntimeError("cannot close")
    with pytest.raises(BackendError, match="no such model"):
        await opened(Server(one), Server(two), Server(BackendError("no such model")))
    assert (one.closed, two.closed) == (1, 1)


async def test_a_real_server_joins_when_it_is_started(
    clock: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    script = {"3 + 4 = 7 #### 7": 1.0}
    with kept_port() as port, FakeServer(ScriptedModel(script)) as one:
        late = FakeServer(ScriptedModel(script), port=port)
        address = late.base_url
        name = f"vllm/scripted@{one.base_url},{address}"
        async with await backends.connect(name, retries=QUICK) as pool:
            assert f"vllm/scripted@{address} is down" in caplog.text
            ets = ETS(pool, num_candidates=2, num_rollouts=2, max_tokens=20)
            assert (await ets.complete("What is 3 + 4?")).answer == "7"
            with late:
                clock(5.0)
                assert (await ets.complete("What is 3 + 4?")).answer == "7"
                assert late.records.all("/v1/completions")
