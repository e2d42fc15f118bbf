"""What pages in browsers and programs without a key can do, which is next to nothing."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import ExitStack

import pytest

from backends.scripted import ScriptedBackend
from ets_agent import Policy, _connections
from ets_agent.guided import RewardOffer
from tests.server.models import Gated
from tests.server.served import CHAT, LOW, PATIENCE, SCRIPT, Served, post, read_until, wait_until
from tests.server.test_streams import Content

CHATS = "/v1/chat/completions"


def let_time_for_a_head_go_by(served: Served) -> None:
    """Let it be over for all connections that there are: who is answered now was accepted after them."""
    assert served.ask("GET", "/healthz").status == 200
    served.pass_time(_connections.HEAD_SECONDS)


def ended(connection: socket.socket) -> bool:
    """Read until the other end has closed or reset the connection, having said nothing."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost@evil", "[", ""]
)
def test_a_name_that_is_not_this_machines_is_refused(scripted: Served, host: str) -> None:
    refused = scripted.ask("POST", CHATS, CHAT | LOW, headers={"Host": host})
    assert (refused.status, refused.error["code"]) == (421, "host_not_allowed")
    assert scripted.ask("GET", "/v1/models", headers={"Host": host}).status == 421
    assert scripted.ask("GET", "/healthz", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:1", "127.0.0.1:8000", "[::1]:8000", "[::1]", "ets.example:80"]
)
def test_this_machines_names_let_in(host: str) -> None:
    with Served(ScriptedBackend(SCRIPT), hosts=["ets.example"]) as served:
        assert served.ask("GET", "/v1/models", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "file://", "http://localhost.evil.example", "ftp://localhost"]
)
def test_a_page_from_elsewhere_is_refused(scripted: Served, origin: str) -> None:
    refused = scripted.ask("POST", CHATS, CHAT | LOW, headers={"Origin": origin})
    assert (refused.status, refused.error["code"]) == (403, "origin_not_allowed")


def test_a_page_of_this_machine_is_not(scripted: Served) -> None:
    assert scripted.ask("POST", CHATS, CHAT | LOW, headers={"Origin": "http://localhost:3000"}).status == 200


def test_with_a_key_any_name_will_do() -> None:
    with Served(ScriptedBackend(SCRIPT), keys=["key"]) as served:
        headers = {"Host": "ets.example", "Origin": "https://app.example"}
        assert served.ask("GET", "/v1/models", key="key", headers=headers).status == 200


def test_a_head_without_end_is_refused(scripted: Served) -> None:
    with scripted.connection() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n" + 4000 * b"a: 0123456789\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("sent", [b"", b"GET /heal", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /heal"])
def test_a_connection_without_a_request_is_not_kept(scripted: Served, sent: bytes) -> None:
    whole, end, part = sent.rpartition(b"\r\n\r\n")
    with scripted.connection() as connection:
        connection.sendall(whole + end)
        if whole:
            read_until(connection, b"ok")
        connection.sendall(part)
        let_time_for_a_head_go_by(scripted)
        assert ended(connection)


def test_a_connection_with_a_request_is() -> None:
    gate = Gated()
    with Served(gate) as served, served.asked(CHAT | LOW) as connection, served.connection() as other:
        wait_until(lambda: gate.waiting == 1)
        let_time_for_a_head_go_by(served)
        assert ended(other), "the time has gone by"
        gate.open()
        read_until(connection, b"chat.completion")


@pytest.mark.parametrize("kept", [False, True], ids=["close", "keep-alive"])
def test_a_response_that_is_not_read_is_not_kept(monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    lost = threading.Event()
    lose = _connections.Connection.connection_lost

    def note(connection: _connections.Connection, error: Exception | None) -> None:
        lose(connection, error)
        lost.set()

    monkeypatch.setattr(_connections, "READ_SECONDS", 0.2)
    monkeypatch.setattr(_connections.Connection, "connection_lost", note)
    # More than all buffers between the two hold.
    policy = Policy(rewards=[RewardOffer(name="content", reward=Content())], max_tokens=64)
    with Served(ScriptedBackend({"x" * 4_000_000: 1.0}), policy=policy) as served, served.connection() as connection:
        request = post(json.dumps(CHAT | LOW | {"n": 8}).encode())
        connection.sendall(request if kept else request.replace(b"Host", b"Connection: close\r\nHost"))
        assert connection.recv(1)
        assert lost.wait(PATIENCE)


def test_there_are_only_so_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_connections, "connection_limit", lambda: 3)
    with Served(ScriptedBackend(SCRIPT)) as served, ExitStack() as stack:
        kept = [stack.enter_context(served.connection()) for _ in range(3)]
        for connection in kept:
            connection.sendall(post(json.dumps(CHAT | LOW).encode()))
            read_until(connection, b"chat.completion")
        with served.connection() as one_more:
            assert ended(one_more)
        stack.close()
        wait_until(lambda: _answers(served))


def _answers(served: Served) -> bool:
    try:
        return served.ask("GET", "/healthz").status == 200
    except OSError:
        return False


def test_connections_leave_files_for_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    for files, most in ((1024, 512), (200, 100), (10, 8), (10**6, 4096), (resource.RLIM_INFINITY, 4096)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert _connections.connection_limit() == most
