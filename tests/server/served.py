"""The HTTP server in a thread of this process, and clients that see every byte."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from backends import Backend
from ets_agent import ETSConfig, GuidedReasoning, Policy
from ets_agent.keys import Keys
from ets_agent.server import Limits, bind, create_app, serve
from tests.virtual_time import pass_time

PATIENCE = 30.0
"""Seconds after which something counts as hung; nothing waits this long unless it hangs."""
SCRIPT = {"12 + 30 = 42\n#### 42": 8.0, "12 + 30 = 43\n#### 43": 1.0}
QUESTION = "How many apples are 12 apples and 30 apples?"
CHAT: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": QUESTION}]}
TEXT: dict[str, Any] = {"model": "scripted", "prompt": QUESTION}
LOW: dict[str, Any] = {"ets": {"effort": "low"}}


@dataclass(frozen=True)
class Answer:
    """A response that was read to its end."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> dict[str, Any]:
        """What stands in an error, having checked that it is one."""
        assert set(self.json) == {"error"}, self.text
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert "pydantic" not in self.text
        return error

    @property
    def events(self) -> list[str]:
        """The data of all events of a stream."""
        assert self.headers["content-type"] == "text/event-stream; charset=utf-8"
        parts = self.text.split("\n\n")
        assert parts.pop() == ""
        assert all(part.startswith("data: ") and "\n" not in part for part in parts)
        return [part.removeprefix("data: ") for part in parts]

    @property
    def chunks(self) -> list[Any]:
        """The chunks of a stream that ended as it should."""
        *chunks, last = self.events
        assert last == "[DONE]"
        return [json.loads(chunk) for chunk in chunks]


class Served:
    """A server in a thread, with an event loop of its own.

    Args:
        backend: The model; closed in the end.
        keys: What lets callers in.
        limits: What one caller may have.
        names: More names of the model.
        hosts: More names of this machine.
        shutdown_timeout: Seconds that answers in the making are given when it stops.
        **reasoning: More arguments of `GuidedReasoning`.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        keys: Sequence[str] = (),
        limits: Limits | None = None,
        names: Sequence[str] = (),
        hosts: Sequence[str] = (),
        shutdown_timeout: float = 0.0,
        **reasoning: Any,
    ) -> None:
        self.backend = backend
        self.url = ""
        self._keys = Keys(keys)
        self._limits = limits
        self._names = names
        self._hosts = hosts
        self._shutdown_timeout = shutdown_timeout
        reasoning.setdefault("policy", Policy(max_tokens=64))
        reasoning.setdefault("config", ETSConfig(max_tokens=32))
        self._options = reasoning
        self.reasoning: GuidedReasoning
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)
        self._ready = threading.Event()
        self._stop: Callable[[], object] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send a request, with a JSON body or with bytes, and read all of the response."""
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if content is not None else {}
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, content, sent | (headers or {}))
            response = connection.getresponse()
            told = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, told, response.read().decode())
        finally:
            connection.close()

    def chat(self, **fields: Any) -> Answer:
        return self.ask("POST", "/v1/chat/completions", CHAT | fields)

    def complete(self, **fields: Any) -> Answer:
        return self.ask("POST", "/v1/completions", TEXT | fields)

    @contextmanager
    def connection(self) -> Iterator[socket.socket]:
        """Open a connection by which anything can be sent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connected:
            yield connected

    @contextmanager
    def asked(self, body: Any, path: str = "/v1/chat/completions") -> Iterator[socket.socket]:
        """Send a request and hand over the connection, of which nothing was read yet."""
        with self.connection() as connected:
            connected.sendall(post(json.dumps(body).encode(), path))
            yield connected

    def stop(self) -> None:
        """Begin to stop."""
        assert self._stop is not None
        self._stop()

    def pass_time(self, seconds: float) -> None:
        """Let it be so much later in the server's event loop."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(_pass_time(seconds), self._loop).result(PATIENCE)

    def wait_stopped(self, seconds: float = PATIENCE) -> bool:
        """Wait until it has stopped; say whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        assert self.url, "it did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread.is_alive():
            self.stop()
            assert self.wait_stopped()

    async def _main(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._stop = lambda: loop.call_soon_threadsafe(task.cancel)
        self._loop = loop

        def ready(url: str) -> None:
            self.url = url
            self._ready.set()

        try:
            async with self.backend, GuidedReasoning(self.backend, **self._options) as reasoning:
                self.reasoning = reasoning
                app = create_app(reasoning, keys=self._keys, limits=self._limits, names=self._names, hosts=self._hosts)
                listener = bind("127.0.0.1", 0, keys=self._keys.required)
                timeout = self._shutdown_timeout
                await serve(app, listener, shutdown_timeout=timeout, on_ready=ready)
        except asyncio.CancelledError:
            pass
        finally:
            self._ready.set()


async def _pass_time(seconds: float) -> None:
    pass_time(seconds)


def post(body: bytes, path: str = "/v1/chat/completions", *, length: int | None = None) -> bytes:
    """Return a request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def read_until(connection: socket.socket, wanted: bytes) -> bytes:
    """Read until something has come; return all that has come."""
    seen = bytearray()
    while seen.find(wanted, -65536 - len(wanted)) < 0:
        data = connection.recv(65536)
        assert data, f"the connection ended without {wanted!r}: {seen!r}"
        seen += data
    return bytes(seen)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.002)
