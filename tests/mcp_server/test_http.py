"""The server as a process behind streamable HTTP on loopback, with the SDK's own client and without."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx2
import jsonschema
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from backends.scripted import ScriptedBackend
from ets_agent import GuidedReasoning, _connections, mcp_server
from tests.mcp_server.conftest import MODES, PATIENCE, QUESTION, ROOT, SOON, Log, Mode, ServeHttp
from tests.standstill import again_after_a_standstill

TOOL = "guided_reasoning"
JSON = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}


@pytest.mark.parametrize("mode", MODES)
async def test_clients_list_and_call_and_see_progress(mode: Mode, serve_http: ServeHttp) -> None:
    told: list[float] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append(progress)

    server = serve_http()
    async with Client(await server.address(), mode=mode) as client:
        (tool,) = (await client.list_tools()).tools
        result = await client.call_tool(TOOL, {**SOON, "max_tokens": 6}, progress_callback=hear)
        refused = await client.call_tool(TOOL, {**SOON, "reward": {"name": "code_tests", "test": ""}})
        bad = await client.call_tool(TOOL, {"effort": "low"})
    jsonschema.validate(result.structured_content, tool.output_schema)
    assert told == sorted(set(told))
    assert told[-1] == 2
    assert [each.is_error for each in (result, refused, bad)] == [False, True, True]


@pytest.mark.parametrize("mode", MODES)
async def test_a_cancelled_call_ends_its_run(mode: Mode, serve_http: ServeHttp, log: Log) -> None:
    server = serve_http(delay=300)
    async with Client(await server.address(), mode=mode) as client:
        call = asyncio.create_task(client.call_tool(TOOL, QUESTION))
        await log.until(lambda log: log.active > 0)
        call.cancel()
        await log.until(lambda log: log.active == 0)
        await asyncio.gather(call, return_exceptions=True)
        assert (await client.list_tools()).tools


@pytest.mark.parametrize("mode", MODES)
async def test_a_killed_client_ends_its_run_and_no_other(mode: Mode, serve_http: ServeHttp, log: Log) -> None:
    server = serve_http("--concurrency", "2", delay=300)
    address = await server.address()
    script = (
        "import asyncio\n"
        "from mcp import Client\n"
        "from tests.mcp_server.conftest import QUESTION\n"
        "async def main():\n"
        f"    async with Client({address!r}, mode={mode!r}) as client:\n"
        f"        await client.call_tool({TOOL!r}, QUESTION)\n"
        "asyncio.run(main())\n"
    )
    async with Client(address, mode=mode) as client:
        call = asyncio.create_task(client.call_tool(TOOL, QUESTION))
        await log.until(lambda log: log.active == 2)  # Candidates, and a plain draw to fall back on.
        other = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)  # noqa: ASYNC220 - it is only begun here
        try:
            await log.until(lambda log: log.active == 4)
        finally:
            other.kill()
            other.wait()
        await log.until(lambda log: log.active == 2)
        assert not call.done()
        call.cancel()
        await log.until(lambda log: log.active == 0)
        await asyncio.gather(call, return_exceptions=True)


@pytest.mark.parametrize("mode", MODES)
async def test_a_call_that_would_take_half_a_minute_is_answered_in_its_five_seconds(
    mode: Mode, serve_http: ServeHttp, log: Log
) -> None:
    @again_after_a_standstill
    async def ask(client: Client) -> None:
        began = time.monotonic()
        result = await client.call_tool(TOOL, {**QUESTION, "max_tokens": 8, "timeout": 5})
        seconds = time.monotonic() - began
        assert result.structured_content is not None
        assert result.structured_content["finish_reason"] == "timeout"
        assert result.structured_content["text"]
        assert 4.5 < seconds < 5.5

    server = serve_http(delay=30 / 8)  # Four steps of two calls each
    async with Client(await server.address(), mode=mode) as client:
        await ask(client)
    await log.until(lambda log: log.active == 0)


async def test_many_clients_at_once_are_answered(serve_http: ServeHttp) -> None:
    server = serve_http("--concurrency", "3", delay=0.05)
    address = await server.address()

    async def one(number: int) -> Any:
        async with Client(address, mode=MODES[number % 2]) as client:
            return await client.call_tool(TOOL, SOON)

    results = await asyncio.gather(*map(one, range(8)))
    assert not any(result.is_error for result in results)
    assert len({result.structured_content["trace_id"] for result in results}) == 8


@pytest.mark.parametrize("mode", MODES)
async def test_sigterm_ends_the_server_soon_and_tells_those_who_wait(
    mode: Mode, serve_http: ServeHttp, log: Log
) -> None:
    server = serve_http(delay=300)
    async with Client(await server.address(), mode=mode) as client:
        call = asyncio.create_task(client.call_tool(TOOL, QUESTION))
        await log.until(lambda log: log.active > 0)
        sent = time.monotonic()
        server.terminate()
        result = await asyncio.wait_for(call, PATIENCE)
        assert await server.ended() == 143
        assert time.monotonic() - sent < 10  # Instead of never; a busy machine may need more than the second it takes.
    assert result.is_error
    assert [block.text for block in result.content if block.type == "text"] == ["the server is shutting down"]
    assert "model: active 0\nmodel: closed\n" in log.text
    assert "Traceback" not in log.text


async def test_a_page_in_a_browser_cannot_reach_the_server_by_a_name_of_its_own(serve_http: ServeHttp) -> None:
    address = await serve_http().address()
    async with httpx2.AsyncClient(headers=JSON) as http:
        rebound = await http.post(address, json=HELLO, headers={"Host": "evil.example:8001"})
        foreign = await http.post(address, json=HELLO, headers={"Origin": "https://evil.example"})
        own = await http.post(address, json=HELLO)
        large = await http.post(address, json={**HELLO, "padding": "x" * 5_000_000})
    assert [answer.status_code for answer in (rebound, foreign, own, large)] == [421, 403, 200, 413]


@pytest.mark.parametrize("mode", MODES)
async def test_remote_callers_are_not_told_why_the_model_failed(mode: Mode, serve_http: ServeHttp, log: Log) -> None:
    async with Client(await serve_http(delay=-1).address(), mode=mode) as client:
        result = await client.call_tool(TOOL, SOON)
    assert result.is_error
    assert [block.text for block in result.content if block.type == "text"] == ["the model failed"]
    assert "10.1.2.3" in log.text


async def test_a_head_without_end_is_refused(serve_http: ServeHttp) -> None:
    address = urlsplit(await serve_http().address())
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b"POST /mcp HTTP/1.1\r\n" + 4000 * b"a: 0123456789\r\n")
    assert (await reader.read(100)).startswith(b"HTTP/1.1 400 ")
    writer.close()


async def test_with_keys_only_those_who_have_one_get_in(serve_http: ServeHttp, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-key\nsecond-key\n")
    address = await serve_http("--api-key-file", str(keys)).address()
    async with httpx2.AsyncClient(headers=JSON) as http:
        for wrong in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Basic first-key"}):
            answer = await http.post(address, json=HELLO, headers=wrong)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        mine, others = ({"Authorization": f"Bearer {key}"} for key in ("first-key", "second-key"))
        hello = await http.post(address, json=HELLO, headers=mine)
        session = {"Mcp-Session-Id": hello.headers["Mcp-Session-Id"]}
        assert (await http.post(address, json=PING, headers={**mine, **session})).status_code == 200
        assert (await http.post(address, json=PING, headers={**others, **session})).status_code == 404


async def test_the_sdks_client_shows_its_key(serve_http: ServeHttp) -> None:
    address = await serve_http(ETS_API_KEYS="first-key, second-key").address()
    async with (
        httpx2.AsyncClient(headers={"Authorization": "Bearer second-key"}, timeout=PATIENCE) as http,
        Client(streamable_http_client(address, http_client=http)) as client,
    ):
        assert not (await client.call_tool(TOOL, SOON)).is_error


def half(address: SplitResult) -> bytes:
    """Return a request of which the body is not all there."""
    accept = "Accept: application/json, text/event-stream\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    return f"POST /mcp HTTP/1.1\r\nHost: {address.netloc}\r\n{accept}Content-Length: 100\r\n\r\n".encode()


async def test_a_client_that_hangs_up_while_it_sends_is_forgotten(serve_http: ServeHttp, log: Log) -> None:
    server = serve_http()
    address = urlsplit(await server.address())
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(half(address))
    assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")  # Now the body is being read.
    writer.write(b"{")
    writer.close()
    await writer.wait_closed()
    async with Client(await server.address()) as client:
        assert (await client.list_tools()).tools
    server.terminate()
    assert await server.ended() == 143
    assert "Traceback" not in log.text


async def test_who_is_still_sending_a_request_at_the_shutdown_is_told(serve_http: ServeHttp, log: Log) -> None:
    server = serve_http()
    address = urlsplit(await server.address())
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(half(address))
    await reader.readuntil(b"\r\n\r\n")
    server.terminate()
    assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
    assert await server.ended() == 143
    assert "Traceback" not in log.text
    writer.close()


async def test_a_body_that_does_not_come_is_not_waited_for(
    scripted: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connections, "BODY_SECONDS", 0.2)
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with GuidedReasoning(scripted) as reasoning:
        listener = mcp_server.bind("127.0.0.1", 0, keys=False)
        serving = asyncio.create_task(mcp_server.serve_http(reasoning, listener, on_ready=ready.set_result))
        address = urlsplit(await ready)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(half(address) + b"{")
        answer = await asyncio.wait_for(reader.read(), PATIENCE)
        assert b"HTTP/1.1 408 " in answer
        writer.close()
        serving.cancel()
        await asyncio.wait([serving])
