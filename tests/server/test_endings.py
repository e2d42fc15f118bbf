"""How streams end before their time, and what of it is logged, counted and kept."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import suppress

import pytest

from backends import State
from backends.scripted import ScriptedBackend
from ets_agent.server import Limits, event_stream, runs
from tests.server.models import UNREACHABLE, Failing, Gated
from tests.server.served import CHAT, SCRIPT, Served, read_until, wait_until
from tests.server.test_streams import STEPS, UNREAD, talkative
from tests.virtual_time import Overdue


def counted(served: Served, status: int) -> int:
    page = served.ask("GET", "/metrics").text
    found = re.search(rf'ets_requests_total{{method="POST",route="[^"]+",status="{status}"}} (\d+)', page)
    return int(found[1]) if found else 0


def test_a_hang_up_in_mid_stream_is_no_mistake_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gated(free=1)
    with Served(gate) as served:
        with served.asked(CHAT | STEPS) as connection:
            read_until(connection, b'"content":"12 +')
            wait_until(lambda: gate.waiting == 1)
        wait_until(lambda: counted(served, 499) == 1)
        assert (served.reasoning.places.active, counted(served, 200)) == (0, 0)
    assert caplog.records == []


def test_a_reader_that_does_not_come_back_loses_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits(stall_seconds=0.2)
    with talkative(limits) as served, served.asked(UNREAD, "/v1/completions") as connection:
        wait_until(lambda: counted(served, 499) == 1)
        with suppress(ConnectionResetError):
            while connection.recv(1 << 20):
                pass
    assert caplog.records == []


def test_a_stream_that_the_shutdown_ends_is_no_mistake_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gated(free=1)
    with Served(gate) as served, served.asked(CHAT | STEPS) as connection:
        read_until(connection, b'"content":"12 +')
        served.stop()
        assert read_until(connection, b"0\r\n\r\n").count(b"shutting_down") == 1
        assert served.wait_stopped()
    assert caplog.records == []


def test_a_failure_in_mid_stream_is_counted_as_one(caplog: pytest.LogCaptureFixture) -> None:
    with Served(Failing(UNREACHABLE, at=3)) as served:
        served.chat(**STEPS)
        assert counted(served, 502) == 1
    assert [record.getMessage() for record in caplog.records] == [f"the model's server failed: {UNREACHABLE}"]


def test_silence_is_filled_with_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "SILENCE_SECONDS", 0.02)
    gate = Gated(free=1)
    with Served(gate) as served, served.asked(CHAT | STEPS) as connection:
        read_until(connection, b"\n: at work\n\n")
        read_until(connection, b"\n: at work\n\n")
        gate.open()
        read_until(connection, b"[DONE]")


class Stubborn(ScriptedBackend):
    """Lets nobody cancel it."""

    def __init__(self) -> None:
        super().__init__(SCRIPT)
        self.holds = False
        self.cancelled = 0
        self._over = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def let_go(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._over.set)

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        self._loop = asyncio.get_running_loop()
        self.holds = True
        while not self._over.is_set():
            try:
                await self._over.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
        self.holds = False
        return await super().extend(state, n, tokens=tokens, seed=seed)


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_does_not_let_go_is_not_waited_for_after_a_hang_up(
    stream: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runs, "LET_GO_SECONDS", 0.05)
    backend = Stubborn()
    with Served(backend, limits=Limits(key_concurrency=1)) as served:
        with served.asked(CHAT | {"stream": stream}):
            wait_until(lambda: backend.holds)
        wait_until(lambda: counted(served, 499) == 1)
        assert backend.holds
        assert served.reasoning.places.active == 1, "the model is still at it"
        backend.let_go()
        wait_until(lambda: served.reasoning.places.active == 0)
        assert served.chat().status == 200, "the caller's own place was given back"
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "a run goes on that was ended: the model does not let go of it")
    ]


def test_a_client_of_a_model_that_does_not_let_go_is_told_of_the_shutdown() -> None:
    backend = Stubborn()
    with Served(backend) as served, served.asked(CHAT) as connection:
        wait_until(lambda: backend.holds)
        served.stop()
        assert read_until(connection, b"shutting_down").startswith(b"HTTP/1.1 503 ")
        assert backend.holds
        backend.let_go()
        assert served.wait_stopped()


def test_a_choice_without_any_text_in_time_says_so() -> None:
    with Served(Overdue(SCRIPT, seconds=10)) as served:
        (choice,) = served.chat(ets={"timeout": 9}).json["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
        assert len(choice["ets"]["warnings"]) == 1
        assert "complete" in choice["ets"]["warnings"][0]
