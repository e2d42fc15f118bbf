"""Stopping: what is under way may finish, within bounds; nothing new is begun; clients are told."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import ExitStack

import pytest

from backends.scripted import ScriptedBackend
from ets_agent.server.errors import ApiError
from ets_agent.server.runs import Work
from tests.server.models import Gated
from tests.server.served import CHAT, LOW, PATIENCE, SCRIPT, TEXT, Answer, Served, post, read_until, wait_until
from tests.server.test_streams import STEPS, UNREAD, talkative

SOON = 8.0
"""Seconds that bounded stopping may take on a busy machine; its own bounds are some 2 s."""


class Asking:
    """A request in a thread."""

    def __init__(self, served: Served, **fields: object) -> None:
        self._answers: list[Answer] = []
        self._thread = threading.Thread(target=lambda: self._answers.append(served.chat(**fields)), daemon=True)
        self._thread.start()

    def answer(self) -> Answer:
        self._thread.join(PATIENCE)
        (answer,) = self._answers
        return answer


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_under_way_may_finish(stream: bool) -> None:
    backend = Gated()
    with Served(backend, shutdown_timeout=PATIENCE) as served:
        asking = Asking(served, stream=stream, **LOW)
        wait_until(lambda: backend.waiting == 1)
        served.stop()
        assert not served.wait_stopped(0.5)
        backend.open()
        answer = asking.answer()
        assert answer.status == 200
        assert not stream or answer.events[-1] == "[DONE]"
        assert served.wait_stopped(SOON)


def test_what_does_not_finish_in_time_is_ended_and_told_so() -> None:
    backend = ScriptedBackend(SCRIPT, delay=600)
    with Served(backend, shutdown_timeout=0.3, max_concurrency=1) as served:
        running, queued = Asking(served), Asking(served)
        wait_until(lambda: (backend.active > 0, served.reasoning.places.waiting) == (True, 1))
        served.stop()
        for asking in (running, queued):
            answer = asking.answer()
            assert (answer.status, answer.error["code"]) == (503, "shutting_down")
            assert answer.headers["retry-after"] == "1"
        assert served.wait_stopped(SOON)
        assert backend.active == 0


def test_a_stream_that_does_not_finish_in_time_ends_with_an_error() -> None:
    backend = Gated(free=1)
    with Served(backend, shutdown_timeout=0.3) as served, served.asked(CHAT | STEPS) as connection:
        seen = read_until(connection, b'"role"')
        served.stop()
        seen += read_until(connection, b"shutting_down")
        assert b"[DONE]" not in seen
        assert served.wait_stopped(SOON)


def test_a_reader_that_does_not_read_does_not_hold_it_up() -> None:
    with talkative() as served, served.asked(UNREAD, "/v1/completions"):
        backend = served.backend
        assert isinstance(backend, ScriptedBackend)
        wait_until(lambda: backend.calls > 2)
        served.stop()
        assert served.wait_stopped(SOON)


def test_connections_that_are_idle_or_half_sent_do_not_hold_it_up(scripted: Served) -> None:
    with Served(ScriptedBackend(SCRIPT)) as served, ExitStack() as stack:
        idle, used, head, body = (stack.enter_context(served.connection()) for _ in range(4))
        used.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read_until(used, b"ok")
        head.sendall(b"POST /v1/comp")
        body.sendall(post(b"{", length=100))
        served.stop()
        assert served.wait_stopped(SOON)
        assert idle.recv(1) == b""


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_who_is_still_sending_a_request_is_told(path: str, caplog: pytest.LogCaptureFixture) -> None:
    with Served(ScriptedBackend(SCRIPT)) as served, served.connection() as sending:
        sending.sendall(post(b"", path, length=100).replace(b"Host", b"Expect: 100-continue\r\nHost"))
        read_until(sending, b"100 Continue")  # Now the body is being read.
        sending.sendall(b"{")
        served.stop()
        answer = read_until(sending, b"shutting_down")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"connection: close" in answer.lower()
        assert served.wait_stopped(SOON)
    assert caplog.records == []


def test_nothing_new_is_begun() -> None:
    backend = Gated()
    with Served(backend, shutdown_timeout=PATIENCE) as served, served.connection() as open_before:
        open_before.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read_until(open_before, b"ok")
        asking = Asking(served, **LOW)
        wait_until(lambda: backend.waiting == 1)
        served.stop()
        wait_until(lambda: not _listens(served))
        open_before.sendall(post(json.dumps(TEXT).encode(), "/v1/completions"))
        assert read_until(open_before, b"shutting_down").startswith(b"HTTP/1.1 503 ")
        backend.open()
        assert asking.answer().status == 200


def _listens(served: Served) -> bool:
    try:
        with served.connection():
            return True
    except OSError:
        return False


async def test_work_that_is_cancelled_from_outside_leaves_nothing() -> None:
    work, begun = Work(), asyncio.Event()

    async def last() -> None:
        begun.set()
        await asyncio.Event().wait()

    async def receive() -> dict[str, str]:
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(work.attend(last(), receive))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(asyncio.all_tasks()) == 1
    await work.close(PATIENCE)
    with pytest.raises(ApiError, match="shutting down"):
        await work.attend(last(), receive)
