"""Models through litellm: what is cancelled and closed, and what the whole process sees of it."""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import os
import subprocess
import sys
import textwrap
import threading
from typing import Any

import httpx
import pytest

import backends
from backends import BackendClosedError, BackendError, CapabilityError, UnknownModelError
from backends.endpoints import litellm_module
from backends.endpoints.litellm_module import litellm
from backends.limits import Limiter
from backends.litellm import LiteLLMBackend
from ets_agent import ETS
from tests.fake_server import FakeServer, Fault, FaultPlan, ScriptedModel

from .common import AT_ONCE, KEY, PLAIN, SCRIPT, at, draws, others, texts, until_busy, until_idle

# litellm ignores this itself where it is imported; pytest sets filters anew for each test.
pytestmark = pytest.mark.filterwarnings("ignore:.*`ReadOnly` qualifier:UserWarning")


async def test_a_cancelled_call_is_cancelled_at_the_server(server: FakeServer, model: str) -> None:
    server.faults = FaultPlan.always("hang")
    async with at(server, model) as backend:
        call = asyncio.create_task(draws(backend, 2))
        await until_busy(server)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until_idle(server)
        assert server.records.aborted == 1
        assert not others()
        server.faults = None
        assert len(await draws(backend, 2)) == 2, "its connections can be used again"


async def test_a_call_may_be_cancelled_at_any_moment(server: FakeServer, model: str) -> None:
    limiter = Limiter(1)
    async with at(server, model, max_concurrency=limiter) as backend:
        await draws(backend, 1)
        for turns in range(40):
            call = asyncio.create_task(draws(backend, 1))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            assert limiter.active == 0
        assert len(await draws(backend, 1)) == 1
    assert not others()
    gc.collect()  # A coroutine that litellm's thread returned, and that nobody awaited, would be told of now.


async def test_a_call_that_fails_while_it_is_cancelled_is_no_matter_for_asyncios_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun = asyncio.Event()

    async def stubborn(**arguments: Any) -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("the connection was in an odd state") from None

    monkeypatch.setattr(litellm, "acompletion", stubborn)
    async with LiteLLMBackend("openai/x") as backend:
        call = asyncio.create_task(draws(backend, 1))
        await begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    del call
    gc.collect()
    assert not caplog.records


async def test_closing_ends_requests_under_way(server: FakeServer, model: str) -> None:
    server.faults = FaultPlan.always("hang")
    backend = at(server, model, retries=AT_ONCE)
    calls = [asyncio.create_task(draws(backend, 1)) for _ in range(3)]
    await until_busy(server, 3)
    await backend.aclose()
    for call in calls:
        with pytest.raises(BackendClosedError, match="was closed during"):
            await call
    await until_idle(server)
    assert server.records.aborted == server.records.total == 3
    assert not others()
    with pytest.raises(BackendClosedError):
        await backend.begin("2 + 2?", max_tokens=4, params=PLAIN)


async def test_closing_one_backend_leaves_others_and_litellm_itself_alone(server: FakeServer, model: str) -> None:
    one, two = at(server, model), at(server, model)
    for backend in (one, two):
        await draws(backend, 1)
    arguments: Any = {"model": model, "api_base": server.base_url, "api_key": KEY, "timeout": 300.0}
    messages = [{"role": "user", "content": "2 + 2?"}]
    closed = threading.Event()
    server.faults = FaultPlan.always(Fault(kind="slow", until=closed))
    drawing = asyncio.create_task(draws(two, 1))
    asking = asyncio.create_task(
        litellm.acompletion(messages=messages, max_retries=0, num_retries=0, max_tokens=9, **arguments)
    )
    await until_busy(server, 2)
    await one.aclose()
    closed.set()
    assert texts(await drawing)[0] in SCRIPT
    assert (await asking).choices[0].message.content in SCRIPT
    server.faults = None
    assert len(await draws(two, 1)) == 1
    await two.aclose()
    await litellm.close_litellm_async_clients()
    await litellm_workers_end()


async def test_requests_that_waited_when_the_backend_was_closed_are_not_sent(server: FakeServer) -> None:
    server.faults = FaultPlan.always("hang")
    backend = at(server, max_concurrency=1)
    calls = [asyncio.create_task(draws(backend, 1)) for _ in range(3)]
    await until_busy(server)
    await backend.aclose()
    for call in calls:
        with pytest.raises(BackendClosedError):
            await call
    assert server.records.total == 1


async def test_requests_that_wait_for_their_turn_are_not_sent_after_closing(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[int] = []

    async def forever(**arguments: Any) -> None:
        reached.append(1)
        await asyncio.Event().wait()

    monkeypatch.setattr(litellm, "acompletion", forever)
    backend = at(server)
    calls = [asyncio.create_task(draws(backend, 1, seed=seed)) for seed in range(24)]
    while not reached:
        await asyncio.sleep(0)
    await backend.aclose()
    async with asyncio.timeout(20):
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, BackendClosedError), outcome
    assert len(reached) < 24, "no more go on in one round of the event loop than may"
    assert not others()


async def test_a_call_that_is_cancelled_while_its_backend_is_closed_counts_as_cancelled(server: FakeServer) -> None:
    server.faults = FaultPlan.always("hang")
    backend = at(server)
    call = asyncio.create_task(draws(backend, 1))
    await until_busy(server)
    call.cancel()
    await backend.aclose()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_closing_leaves_a_session_that_the_user_gave_to_litellm_open(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with httpx.AsyncClient() as session:
        monkeypatch.setattr(litellm, "aclient_session", session)
        async with at(server) as backend:
            await draws(backend, 1)
        assert not session.is_closed


async def litellm_workers_end() -> None:
    """End the tasks that litellm keeps in the background for calls that are not a backend's."""
    for task in others():
        task.cancel()
    await asyncio.gather(*others(), return_exceptions=True)


async def test_nothing_of_litellm_is_left_in_the_background(server: FakeServer, model: str) -> None:
    seen: list[Any] = []
    litellm.success_callback.append(lambda *told: seen.append(told))
    try:
        async with at(server, model) as backend:
            await draws(backend, 3)
    finally:
        litellm.success_callback.clear()
    assert not others()
    assert not seen


async def test_a_cache_of_the_users_gives_no_draws(server: FakeServer) -> None:
    litellm.cache = litellm.Cache(type="local")
    try:
        async with at(server) as backend:
            for _ in range(3):
                await draws(backend, 1)
    finally:
        litellm.cache = None
    assert server.records.total == 3


def test_one_backend_serves_several_event_loops_one_after_the_other(server: FakeServer, model: str) -> None:
    backend = at(server, model)
    for _ in range(3):
        assert len(asyncio.run(draws(backend, 2))) == 2
        gc.collect()  # Connections left open would be told of now.
    asyncio.run(backend.aclose())
    with pytest.raises(BackendClosedError):
        asyncio.run(draws(backend, 1))


async def test_it_is_loaded_by_name(server: FakeServer) -> None:
    async with backends.load("litellm/openai/scripted", api_base=server.base_url, api_key=KEY) as backend:
        assert isinstance(backend, LiteLLMBackend)
        assert backend.name == "litellm/openai/scripted"
        assert len(await draws(backend, 2)) == 2
    with pytest.raises(BackendError, match="takes no option 'api_kye'; allowed: api_base, api_key, extra"):
        backends.load("litellm/openai/scripted", api_kye=KEY)
    with pytest.raises(UnknownModelError, match="no provider for 'nowhere/x'"):
        await backends.connect("litellm/nowhere/x")


async def test_a_run_of_one_step_votes_and_one_of_several_is_refused(model: str) -> None:
    script = ScriptedModel({"it is 4 #### 4": 8.0, "it is 5 #### 5": 1.0, "no": 1.0})
    with FakeServer(script, api_key=KEY) as server:
        await one_step(at(server, model))


async def one_step(backend: LiteLLMBackend) -> None:
    async with backend:
        with pytest.raises(CapabilityError, match="only num_steps=1 is possible"):
            ETS(backend, "self_consistency", num_steps=4, num_candidates=8, max_tokens=20)
        ets = ETS(backend, "self_consistency", num_steps=1, num_candidates=16, kl_coef=0.01, max_tokens=20, seed=1)
        result = await ets.complete("2 + 2?")
        assert result.text == "it is 4 #### 4"
        assert (await ets.complete("2 + 2?")).text == result.text
    assert not others()


@pytest.mark.parametrize("version", ["1.82.7", "1.82.8"])
def test_malicious_releases_are_not_imported(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    monkeypatch.delitem(sys.modules, "litellm")
    with pytest.raises(BackendError, match=f"litellm {version} is a malicious release"):
        litellm_module._imported()
    assert "litellm" not in sys.modules


PROGRAM = """
    import asyncio, gc, os, sys, warnings

    addresses = []

    def watch(event, arguments):
        if event in ("socket.connect", "socket.getaddrinfo"):
            addresses.append(str(arguments))

    sys.addaudithook(watch)
    import dotenv
    dotenv.load_dotenv = lambda *told, **more: sys.exit("an .env file was looked for")
    import backends
    assert "litellm" not in sys.modules, "importing the package must not import litellm"
    before = dict(os.environ)
    backend = backends.load(f"litellm/{sys.argv[2]}", api_base=sys.argv[1], api_key=sys.argv[3])
    other = backends.load(f"litellm/{sys.argv[2]}", api_base=sys.argv[1], api_key=sys.argv[3])
    assert "litellm" in sys.modules
    assert dict(os.environ) == before, "the environment is as it was"
    assert not addresses, addresses

    async def draw(backend):
        state = await backend.begin("2 + 2?", max_tokens=20, params=backends.SamplingParams())
        return await backend.rollout([state], 3, seed=1)

    async def closed():
        async with other:
            await draw(other)

    for _ in range(2):
        asyncio.run(draw(backend))  # Never closed; its connections end with the loop.
    asyncio.run(closed())
    gc.collect()
    assert all("127.0.0.1" in address for address in addresses), addresses
    print("done")
"""
# Slow steps of the event loop are told on stderr in development mode, by asyncio's logger.
QUIET = "import logging; logging.getLogger('asyncio').setLevel(logging.ERROR)"


def test_a_program_reads_no_env_file_fetches_nothing_and_ends_without_a_warning(
    server: FakeServer, model: str, tmp_path: Any
) -> None:
    program = tmp_path / "program.py"
    program.write_text(QUIET + "\n" + textwrap.dedent(PROGRAM))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LITELLM_")}
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", str(program), server.base_url, model, KEY],
        env=environment | {"PYTHONPATH": os.getcwd()},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
