"""The server in this process over a scripted model, and as a process whose stderr is watched."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from backends.scripted import ScriptedBackend
from ets_agent import GuidedReasoning, Policy
from ets_agent.mcp_server import build_server
from tests.mcp_server.watched_ets import RESPONSES

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds after which something counts as hung; nothing waits this long unless it hangs."""
QUESTION = {"question": "Ada has 12 apples and finds 4 more. Ben has twice as many. How many has Ben?"}
SOON = {**QUESTION, "effort": "low"}

Mode = Literal["auto", "legacy"]
MODES: tuple[Mode, ...] = ("auto", "legacy")
"""The protocol of 2026, where a request carries everything, and the one before, which begins with a handshake."""


@contextlib.asynccontextmanager
async def in_process(
    backend: ScriptedBackend, *, mode: Mode = "auto", policy: Policy | None = None, **settings: Any
) -> AsyncIterator[Client]:
    async with (
        GuidedReasoning(backend, policy=policy, **settings) as reasoning,
        Client(build_server(reasoning), mode=mode) as client,
    ):
        yield client


@pytest.fixture
def scripted() -> ScriptedBackend:
    return ScriptedBackend(RESPONSES)


@contextlib.asynccontextmanager
async def in_one_task(manager: contextlib.AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave in the same task, as anyio's scopes need it and fixtures do not do it."""
    entered: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    leave = asyncio.Event()

    async def hold() -> None:
        async with manager as value:
            entered.set_result(value)
            await leave.wait()

    task = asyncio.create_task(hold())
    await asyncio.wait([task, entered], return_when=asyncio.FIRST_COMPLETED)
    if not entered.done():
        await task
    try:
        yield entered.result()
    finally:
        leave.set()
        await task


class Log:
    """What a process writes to stderr."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def active(self) -> int:
        """Calls of the model under way, as it said last."""
        told = re.findall(r"^model: active (\d+)$", self.text, re.MULTILINE)
        return int(told[-1]) if told else 0

    @property
    def calls(self) -> int:
        """Calls of the model that have begun."""
        told = [int(number) for number in re.findall(r"^model: active (\d+)$", self.text, re.MULTILINE)]
        return sum(after > before for before, after in zip([0, *told], told, strict=False))

    async def until(self, true: Callable[[Log], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not true(self):
            assert time.monotonic() < deadline, self.text
            await asyncio.sleep(0.02)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    path = tmp_path / "stderr"
    path.touch()
    return Log(path)


def command(*arguments: str, delay: float = 0.0) -> list[str]:
    model = ["--model", f"scripted/{delay}"]
    return [sys.executable, "-m", "tests.mcp_server.watched_ets", "mcp", *model, *arguments]


@contextlib.asynccontextmanager
async def over_stdio(log: Log, *arguments: str, delay: float = 0.0, mode: Mode = "auto") -> AsyncIterator[Client]:
    """A client that has started the server itself, as hosts do."""
    program, *rest = command(*arguments, delay=delay)
    server = StdioServerParameters(command=program, args=rest, cwd=ROOT)
    with log.path.open("a") as errors:
        async with Client(stdio_client(server, errlog=errors), mode=mode) as client:
            yield client


class HttpServer:
    """``ets mcp --transport http`` as a process."""

    def __init__(self, log: Log, *arguments: str, delay: float = 0.0, **environment: str) -> None:
        self.log = log
        with log.path.open("a") as errors:
            self.process = subprocess.Popen(
                command("--transport", "http", "--port", "0", *arguments, delay=delay),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **environment},
            )

    async def address(self) -> str:
        await self.log.until(lambda log: "http://" in log.text or self.process.poll() is not None)
        found = re.search(r"http://\S+", self.log.text)
        assert found, self.log.text
        return found[0]

    async def ended(self) -> int:
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "hangs"
            await asyncio.sleep(0.02)
        return self.process.returncode

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


ServeHttp = Callable[..., HttpServer]


@pytest.fixture
def serve_http(log: Log) -> Iterator[ServeHttp]:
    servers: list[HttpServer] = []

    def serve(*arguments: str, delay: float = 0.0, **environment: str) -> HttpServer:
        servers.append(HttpServer(log, *arguments, delay=delay, **environment))
        return servers[-1]

    yield serve
    for server in servers:
        server.kill()
