"""The server as a process of the SDK's own client, over stdin and stdout."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters

from tests.mcp_server.conftest import MODES, PATIENCE, QUESTION, ROOT, SOON, Log, Mode, command, over_stdio
from tests.standstill import again_after_a_standstill

TOOL = "guided_reasoning"


@pytest.mark.parametrize("mode", MODES)
async def test_a_client_lists_and_calls_and_sees_progress(mode: Mode, log: Log) -> None:
    told: list[float] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append(progress)

    async with over_stdio(log, mode=mode) as client:
        (tool,) = (await client.list_tools()).tools
        result = await client.call_tool(TOOL, {**SOON, "max_tokens": 6}, progress_callback=hear)
        refused = await client.call_tool(TOOL, {**SOON, "reward": {"name": "code_tests", "test": ""}})
        unknown = await client.call_tool(TOOL, {**SOON, "reward": {"name": "no_such_reward"}})
        bad = await client.call_tool(TOOL, {"effort": "low"})
        again = await client.call_tool(TOOL, SOON)
    assert tool.name == TOOL
    jsonschema.validate(result.structured_content, tool.output_schema)
    assert told == sorted(set(told))
    assert told[-1] == 2
    assert [each.is_error for each in (result, refused, unknown, bad, again)] == [False, True, True, True, False]
    assert log.text.count("noise that a library makes on stdout") == 1  # Where it does no harm.
    assert log.text.endswith("model: closed\n")


@pytest.mark.parametrize("mode", MODES)
async def test_a_cancelled_call_ends_its_run_and_the_next_one_is_answered(mode: Mode, log: Log) -> None:
    async with over_stdio(log, delay=300, mode=mode) as client:
        call = asyncio.create_task(client.call_tool(TOOL, QUESTION))
        await log.until(lambda log: log.active > 0)
        call.cancel()
        await log.until(lambda log: log.active == 0)
        await asyncio.gather(call, return_exceptions=True)
        assert (await client.list_tools()).tools


async def test_a_call_that_would_take_half_a_minute_is_answered_in_its_five_seconds(log: Log) -> None:
    @again_after_a_standstill
    async def ask(client: Client) -> None:
        began = time.monotonic()
        result = await client.call_tool(TOOL, {**QUESTION, "max_tokens": 8, "timeout": 5})
        seconds = time.monotonic() - began
        await log.until(lambda log: log.active == 0)
        assert result.structured_content is not None
        assert result.structured_content["finish_reason"] == "timeout"
        assert result.structured_content["cut_short"]
        assert result.structured_content["text"]
        assert 4.5 < seconds < 5.5

    async with over_stdio(log, delay=30 / 8) as client:  # Four steps of two calls each.
        await ask(client)


async def test_a_killed_client_ends_the_run_and_the_server(log: Log) -> None:
    script = (
        "import asyncio, sys\n"
        "from tests.mcp_server.conftest import QUESTION, Log, over_stdio\n"
        "from pathlib import Path\n"
        "async def main():\n"
        "    async with over_stdio(Log(Path(sys.argv[1])), delay=300) as client:\n"
        f"        await client.call_tool({TOOL!r}, QUESTION)\n"
        "asyncio.run(main())\n"
    )
    client = subprocess.Popen(  # noqa: ASYNC220 - it is only begun here
        [sys.executable, "-c", script, str(log.path)], cwd=ROOT
    )
    try:
        await log.until(lambda log: log.active > 0)
    finally:
        client.kill()
        client.wait()
    await log.until(lambda log: log.text.endswith("model: active 0\nmodel: closed\n"))


@pytest.fixture
def server(log: Log) -> Iterator[subprocess.Popen[str]]:
    """The server as a bare process, its streams in the test's hands."""
    with log.path.open("a") as errors:
        process = subprocess.Popen(
            command(delay=300), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    yield process
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):
            stream.close()


class Loading:
    """The server as a bare process whose model is loaded when the gate is opened."""

    def __init__(self, log: Log, gate: Path, *arguments: str, model: str = "0") -> None:
        self._gate = gate
        with log.path.open("a") as errors:
            self.process = subprocess.Popen(
                [*command(*arguments), "--model", f"scripted/{model}"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "ETS_TEST_GATE": str(gate)},
            )

    def open(self) -> None:
        self._gate.touch()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


Load = Callable[..., Loading]


@pytest.fixture
def loading(log: Log, tmp_path: Path) -> Iterator[Load]:
    begun: list[Loading] = []

    def begin(*arguments: str, model: str = "0") -> Loading:
        begun.append(Loading(log, tmp_path / "gate", *arguments, model=model))
        return begun[-1]

    yield begin
    for each in begun:
        each.process.kill()
        each.process.wait()
        for stream in (each.process.stdin, each.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


async def test_a_client_is_told_what_there_is_while_the_model_is_loaded(loading: Load, log: Log) -> None:
    server = loading()
    assert shake_hands(server.process)["result"]["serverInfo"]["name"] == "ets-agent"
    say(server.process, id=2, method="tools/list")
    assert [tool["name"] for tool in server.answer()["result"]["tools"]] == [TOOL]
    call(server.process)
    call(server.process, number=3, timeout=0.1)
    late = server.answer()  # Before the other one.
    assert (late["id"], late["result"]["isError"]) == (3, True)
    assert "the model was not loaded before the time was over" in late["result"]["content"][0]["text"]
    say(server.process, id=4, method="tools/call", params={"name": TOOL, "arguments": {**QUESTION, "timeout": 1e9}})
    refused = server.answer()
    assert (refused["id"], refused["result"]["isError"]) == (4, True)
    assert "timeout is 1e+09; allowed: at most 120" in refused["result"]["content"][0]["text"]
    server.open()
    answer = server.answer()
    assert (answer["id"], answer["result"]["isError"]) == (2, False)
    assert server.process.stdin is not None
    server.process.stdin.close()
    assert await asyncio.to_thread(server.process.wait, PATIENCE) == 0
    assert log.text.endswith("model: closed\n")


async def test_a_model_that_cannot_be_loaded_ends_the_server(loading: Load, log: Log) -> None:
    server = loading(model="broken")
    shake_hands(server.process)
    call(server.process)
    server.open()
    assert await asyncio.to_thread(server.process.wait, PATIENCE) == 1
    assert log.text.endswith("ets: error: there is no such model\n")
    assert "Traceback" not in log.text


@pytest.mark.parametrize(("number", "code"), [(None, 0), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_whoever_does_not_wait_for_the_model_ends_the_server(
    loading: Load, log: Log, number: signal.Signals | None, code: int
) -> None:
    server = loading()
    shake_hands(server.process)
    await log.until(lambda log: "model: loading" in log.text)
    if number is None:
        assert server.process.stdin is not None
        server.process.stdin.close()
    else:
        server.process.send_signal(number)
    assert await asyncio.to_thread(server.process.wait, PATIENCE) == code
    assert "Traceback" not in log.text


def say(server: subprocess.Popen[str], **message: Any) -> None:
    assert server.stdin is not None
    server.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    server.stdin.flush()


def shake_hands(server: subprocess.Popen[str]) -> dict[str, Any]:
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    say(server, id=1, method="initialize", params=hello)
    assert server.stdout is not None
    answer: dict[str, Any] = json.loads(server.stdout.readline())
    say(server, method="notifications/initialized")
    return answer


def call(server: subprocess.Popen[str], *, number: int = 2, timeout: float | None = None, **meta: Any) -> None:
    arguments = QUESTION if timeout is None else {**QUESTION, "timeout": timeout}
    say(server, id=number, method="tools/call", params={"name": TOOL, "arguments": arguments, "_meta": meta})


async def test_nothing_but_protocol_is_on_stdout(server: subprocess.Popen[str], log: Log) -> None:
    assert shake_hands(server)["result"]["serverInfo"]["name"] == "ets-agent"
    say(server, id=2, method="tools/call", params={"name": TOOL, "arguments": {}})
    assert server.stdin is not None
    assert server.stdout is not None
    assert json.loads(server.stdout.readline())["result"]["isError"]
    server.stdin.write("no JSON\n")
    server.stdin.close()
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in server.stdout)
    assert server.wait(PATIENCE) == 0
    assert "Traceback" not in log.text


async def test_without_a_progress_token_nothing_is_told(server: subprocess.Popen[str], log: Log) -> None:
    shake_hands(server)
    call(server)
    await log.until(lambda log: log.active > 0)
    say(server, id=3, method="ping")
    assert server.stdout is not None
    assert json.loads(server.stdout.readline()) == {"jsonrpc": "2.0", "id": 3, "result": {}}


async def test_with_a_progress_token_the_first_step_is_told(server: subprocess.Popen[str]) -> None:
    shake_hands(server)
    call(server, progressToken="mine")
    assert server.stdout is not None
    told = json.loads(await asyncio.to_thread(server.stdout.readline))
    assert told["method"] == "notifications/progress"
    assert told["params"] == {
        "progressToken": "mine",
        "progress": 0.05,
        "total": 4,
        "message": "step 1 of 4: drawing and judging candidates",
    }


async def test_the_end_of_stdin_ends_the_run_and_the_server(server: subprocess.Popen[str], log: Log) -> None:
    shake_hands(server)
    call(server)
    await log.until(lambda log: log.active > 0)
    assert server.stdin is not None
    server.stdin.close()
    assert await asyncio.to_thread(server.wait, PATIENCE) == 0
    assert log.text.endswith("model: active 0\nmodel: closed\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_ends_the_server_soon(
    server: subprocess.Popen[str], log: Log, number: signal.Signals, code: int
) -> None:
    shake_hands(server)
    call(server)
    await log.until(lambda log: log.active > 0)
    sent = time.monotonic()
    server.send_signal(number)
    assert await asyncio.to_thread(server.wait, PATIENCE) == code
    assert time.monotonic() - sent < 10  # Instead of never; a busy machine may need more than the second it takes.
    assert "Traceback" not in log.text


async def test_the_installed_command_serves_the_embedded_model(tmp_path: Path) -> None:
    ets = Path(sys.executable).parent / "ets"
    server = StdioServerParameters(command=str(ets), args=["mcp"], env={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    async with Client(server) as client:
        result = await client.call_tool(TOOL, {**SOON, "timeout": 120})
    assert result.structured_content is not None
    assert result.structured_content["model"] == "tiny/qwen3"
    assert result.structured_content["answer"]
