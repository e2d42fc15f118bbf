"""The faults of the fake server are what they say, are seen in its records, and do not outlive it."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import pytest

from tests.fake_server import KINDS, Asked, FakeProcess, FakeServer, Fault, FaultPlan, Kind, ScriptedModel, kept_port
from tests.fake_server.client import call, sent

RESPONSES = {"a b": 4.0, "a c": 1.0, "d e f": 3.0}
CHAT = [{"role": "user", "content": "Which one?"}]
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(ScriptedModel(RESPONSES)) as running:
        yield running


@pytest.mark.parametrize(("kind", "status"), [("rate_limit", 429), ("server_error", 500), ("unavailable", 503)])
def test_errors_say_when_to_come_back(server: FakeServer, kind: Kind, status: int) -> None:
    server.faults = FaultPlan.first(
        kind, Fault(kind=kind, retry_after=0.5), Fault(kind=kind, retry_after=30, as_date=True)
    )
    began = time.time()
    never, seconds, date = (call(server, COMPLETIONS, {"prompt": "x"}) for _ in range(3))
    ended = time.time()
    assert {reply.status for reply in (never, seconds, date)} == {status}
    assert "retry-after" not in never.headers
    assert seconds.headers["retry-after"] == "0.5"
    assert began + 30 <= parsedate_to_datetime(date.headers["retry-after"]).timestamp() < ended + 31, "whole seconds"
    assert call(server, COMPLETIONS, {"prompt": "x"}).status == 200
    assert [record.fault for record in server.records.all()] == [kind] * 3 + [None]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_reset_is_a_reset_and_a_truncation_is_an_end(server: FakeServer, share: float) -> None:
    kinds: tuple[Kind, ...] = ("reset", "truncated")
    for kind in kinds:
        server.faults = FaultPlan.first(Fault(kind=kind, sent=share))
        with sent(server.url, COMPLETIONS, {"prompt": "x", "n": 4000, "logprobs": 0}) as connection:
            assert connection.sock is not None
            got, broken = b"", False
            try:
                while part := connection.sock.recv(65536):
                    got += part
            except ConnectionResetError:
                broken = True
            assert broken == (kind == "reset")
        head, _, body = got.partition(b"\r\n\r\n")
        size = re.search(rb"content-length: (\d+)", head)
        assert size is not None
        wanted = int(int(size[1]) * share)
        # What is on its way when a connection is reset may be lost.
        assert len(body) == wanted if kind == "truncated" else min(wanted, 1) <= len(body) <= wanted
    server.wait_idle()
    assert [(record.fault, record.status, record.aborted) for record in server.records.all()] == [
        ("reset", 200, False),
        ("truncated", 200, False),
    ]


def test_a_stream_can_break_off_too(server: FakeServer) -> None:
    ask = {"prompt": "x", "stream": True}
    server.faults = FaultPlan.first("truncated", "reset", "malformed_json", "more_choices")
    with pytest.raises(http.client.IncompleteRead):
        call(server, COMPLETIONS, ask)
    with pytest.raises(ConnectionResetError):
        call(server, COMPLETIONS, ask)
    assert b"[DONE]" not in call(server, COMPLETIONS, ask).raw
    assert b'"index":1' in call(server, COMPLETIONS, ask).raw
    assert b"[DONE]" in call(server, COMPLETIONS, ask).raw


def test_a_client_that_leaves_a_hang_is_seen(server: FakeServer) -> None:
    server.faults = FaultPlan.first("hang", "hang", Fault(kind="slow", delay=60))
    with sent(server.url, COMPLETIONS, {"prompt": "x"}), sent(server.url, COMPLETIONS, {"prompt": "x"}):
        server.records.wait(lambda records: records.active == 2)
        with sent(server.url, COMPLETIONS, {"prompt": "x"}):
            server.records.wait(lambda records: records.active == 3)
        server.records.wait(lambda records: records.active == 2)
        with pytest.raises(TimeoutError, match="not so after"):
            server.wait_idle(0.01)
    server.wait_idle()
    assert [(record.status, record.aborted) for record in server.records.all(COMPLETIONS)] == [(None, True)] * 3
    assert call(server, "/health").status == 200
    server.wait_idle()
    assert server.records.stats() == {"total": 4, "active": 0, "most_active": 3, "aborted": 3}


def test_a_draw_is_stopped_when_its_client_leaves() -> None:
    with FakeServer(ScriptedModel(RESPONSES, delay=60)) as server:
        with sent(server.url, COMPLETIONS, {"prompt": "x"}):
            server.records.wait(lambda records: records.active == 1)
        server.wait_idle()
        assert server.records.aborted == 1


def test_faults_in_an_answer(server: FakeServer) -> None:
    ask = {"prompt": "Which?", "n": 2, "logprobs": 0, "prompt_logprobs": 0, "return_token_ids": True}
    server.faults = FaultPlan.first("malformed_json", "fewer_choices", "more_choices", "no_logprobs", "empty_text")
    with pytest.raises(ValueError, match="line 1"):
        call(server, COMPLETIONS, ask).json  # noqa: B018
    assert [choice["index"] for choice in call(server, COMPLETIONS, ask).choices] == [0]
    assert [choice["index"] for choice in call(server, COMPLETIONS, ask).choices] == [0, 1, 2]
    assert {(c["logprobs"], c["prompt_logprobs"]) for c in call(server, COMPLETIONS, ask).choices} == {(None, None)}
    for choice in call(server, COMPLETIONS, ask).choices:
        assert (choice["text"], choice["token_ids"], choice["logprobs"]["tokens"]) == ("", [], [])
    server.faults = FaultPlan.always("no_logprobs") | FaultPlan.always("hang")
    call(server, COMPLETIONS, {"prompt": "x"})
    assert server.records.all()[-1].fault is None, "nothing was missing"
    server.faults = FaultPlan.always("empty_text")
    assert call(server, CHATS, {"messages": CHAT}).choices[0]["message"]["content"] == ""
    assert call(server, "/tokenize", {"prompt": "x"}).status == 200, "only generations are spoiled"


def test_plans_choose_by_index_by_request_and_by_chance() -> None:
    def kinds(plan: FaultPlan, path: str = COMPLETIONS, count: int = 2000) -> list[str | None]:
        faults = (plan.decide(Asked(index=index, path=path, body={"n": index})) for index in range(count))
        return [None if fault is None else fault.kind for fault in faults]

    third = FaultPlan.at({2: "hang"})
    even = FaultPlan.when(lambda asked: asked.body["n"] % 2 == 0, "reset")
    assert kinds(third | even, "/tokenize", 4) == ["reset", None, "hang", None]
    assert kinds(FaultPlan.first("hang"), "/tokenize", 3) == [None] * 3, "it waits for a generation"
    plan = FaultPlan.random(0.2, seed=4)
    drawn = kinds(plan)
    assert drawn == kinds(plan) == kinds(FaultPlan.random(0.2, seed=4))
    assert drawn != kinds(FaultPlan.random(0.2, seed=5))
    assert set(drawn) == {None, *KINDS}
    assert 0.17 < sum(kind is not None for kind in drawn) / 2000 < 0.23
    assert set(kinds(plan, "/v1/models")) == {None}
    assert set(kinds(FaultPlan.random(1.0, seed=0, kinds=("reset",)))) == {"reset"}
    for wrong in ({"rate": 2.0}, {"rate": 0.5, "kinds": ()}, {"rate": 1.0, "kinds": ("fire",)}):
        with pytest.raises(ValueError, match=r"allowed|no kind"):
            kinds(FaultPlan.random(seed=0, **wrong))


def test_stopping_waits_for_nobody() -> None:
    before = set(threading.enumerate())
    model = ScriptedModel(RESPONSES, delay=600)
    with kept_port() as port, FakeServer(model, port=port, faults=FaultPlan.at({0: "hang"})) as server:
        with (
            sent(server.url, COMPLETIONS, {"prompt": "x"}) as hanging,
            sent(server.url, CHATS, {"messages": CHAT}) as slow,
        ):
            server.records.wait(lambda records: records.active == 2)
            began = time.monotonic()
            server.__exit__(None, None, None)
            assert time.monotonic() - began < 60
            assert server.records.active == 0
            for connection in (hanging, slow):
                with pytest.raises((ConnectionError, http.client.HTTPException)):
                    connection.getresponse()
        with pytest.raises(ConnectionRefusedError):
            call(server, "/health")
        assert set(threading.enumerate()) <= before
        server.__enter__()
        assert call(server, "/health").status == 200, "it can be started again, at its port"


def test_a_process_can_be_killed_and_started_again() -> None:
    options = ("--profile", "completions", "--delay", "60")
    with kept_port() as port, FakeProcess(responses={"x y": 1.0}, port=port, options=options) as process:
        with sent(process.url, COMPLETIONS, {"model": "scripted", "prompt": "q"}) as connection:
            process.wait(lambda stats: stats["active"] == 1)
            process.kill()
            with pytest.raises((ConnectionError, http.client.HTTPException)):
                connection.getresponse()
        assert not process.alive
        with pytest.raises(ConnectionRefusedError):
            call(process, "/health")
        url = process.url
        process.__exit__(None, None, None)
        with process:
            assert process.url == url
            assert call(process, "/health").status == 200
            assert process.stats() == {"total": 1, "active": 0, "most_active": 1, "aborted": 0}
    with pytest.raises(RuntimeError, match="did not start"):
        FakeProcess(options=("--profile", "none")).__enter__()


def test_a_process_ends_with_its_parent() -> None:
    with FakeProcess() as process:
        assert process._process is not None
        assert process._process.stdin is not None
        process._process.stdin.close()
        assert process._process.wait(60) == 0
