"""Bodies that are too large, too slow, or no JSON that anything could work with."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator

import pytest

from backends.scripted import ScriptedBackend
from ets_agent.server import Limits
from ets_agent.server.body import _validated
from ets_agent.server.errors import ApiError
from ets_agent.server.requests import ChatCompletionRequest
from tests.server.served import CHAT, LOW, SCRIPT, Served, post, read_until

BODY = json.dumps(CHAT | LOW).encode()
CHUNKED = post(b"", length=0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")


@pytest.fixture(scope="module")
def small() -> Iterator[Served]:
    """A server that takes small bodies."""
    with Served(ScriptedBackend(SCRIPT), limits=Limits(max_body=1000)) as served:
        yield served


@pytest.fixture
def hasty() -> Iterator[Served]:
    """A server that takes small bodies, and not for long; those that are sent whole may come too late for it."""
    with Served(ScriptedBackend(SCRIPT), limits=Limits(max_body=1000, body_seconds=0.3)) as served:
        yield served


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def test_a_body_may_come_in_chunks(small: Served) -> None:
    with small.connection() as connection:
        connection.sendall(CHUNKED + chunk(BODY[:10]) + chunk(BODY[10:]) + chunk(b""))
        assert read_until(connection, b"chat.completion").startswith(b"HTTP/1.1 200 ")


def test_a_body_that_says_it_is_too_large_is_refused(small: Served) -> None:
    answer = small.ask("POST", "/v1/chat/completions", b"x" * 1001)
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    assert answer.error["message"] == "the body is too large; allowed: at most 1000 bytes"


def test_a_body_of_the_largest_size_is_read(small: Served) -> None:
    assert small.ask("POST", "/v1/chat/completions", BODY.ljust(1000)).status == 200


def test_a_body_in_chunks_that_grows_too_large_is_refused(small: Served) -> None:
    with small.connection() as connection:
        connection.sendall(CHUNKED + chunk(b"x" * 600) + chunk(b"x" * 600) + chunk(b""))
        assert read_until(connection, b"request_too_large").startswith(b"HTTP/1.1 413 ")


def test_a_body_that_never_ends_is_refused(hasty: Served) -> None:
    with hasty.connection() as connection:
        connection.sendall(CHUNKED + 100 * chunk(b"x" * 1000))
        answer = read_until(connection, b"request_too_large")
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer.lower()
        assert connection.recv(1) == b""


def test_a_body_that_does_not_come_is_not_waited_for(hasty: Served) -> None:
    with hasty.connection() as connection:
        connection.sendall(post(BODY[:10], length=len(BODY)))
        answer = read_until(connection, b"did not arrive within 0.3 seconds")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert connection.recv(1) == b""


def test_a_client_that_hangs_up_while_it_sends_is_forgotten(small: Served) -> None:
    with small.connection() as connection:
        connection.sendall(post(BODY[:10], length=len(BODY)))
    assert small.ask("GET", "/healthz").status == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not valid JSON"),
        (b"{", "the body is not valid JSON"),
        (b"[]", "the body is not a JSON object"),
        (b"null", "the body is not a JSON object"),
        (b'"text"', "the body is not a JSON object"),
        (b'{"model": "\xff"}', "the body is not valid UTF-8"),
        (b"\xff\xfe{\x00}\x00", "the body is not valid UTF-8"),
        (b'{"temperature": NaN}', "NaN is no JSON"),
        (b'{"temperature": -Infinity}', "-Infinity is no JSON"),
        (b'{"ets": {"reward": {"gold": NaN}}}', "NaN is no JSON"),
        (b'{"temperature": 1e999}', "a number in it that is too large"),
        (b'{"ets": {"reward": {"gold": 1e999}}}', "a number in it that is too large"),
        (b'{"seed": ' + b"1" * 900 + b"}", "model is missing"),
        (rb'{"model": "\ud800"}', "half of a surrogate pair"),
        (rb'{"\udfff": 1}', "half of a surrogate pair"),
        (b"[" * 990, "nested too deep"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested too deep; allowed: 64 levels"),
    ],
    ids=range(17),
)
def test_what_is_no_usable_json_is_refused(scripted: Served, body: bytes, message: str) -> None:
    answer = scripted.ask("POST", "/v1/chat/completions", body)
    assert answer.status == 400, answer.text
    assert message in answer.error["message"]


@pytest.mark.parametrize("bomb", [b"[" * 500_000, b'{"a":' * 150_000, b'{"a":[' * 100_000])
def test_a_bomb_of_brackets_is_defused(scripted: Served, bomb: bytes) -> None:
    answer = scripted.ask("POST", "/v1/chat/completions", bomb)
    assert (answer.status, answer.error["message"]) == (400, "the body is nested too deep; allowed: 64 levels")


def test_a_number_of_too_many_digits_is_refused(scripted: Served) -> None:
    answer = scripted.ask("POST", "/v1/chat/completions", b'{"seed": ' + b"1" * 100_000 + b"}")
    assert answer.status == 400


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_what_a_page_in_a_browser_may_send_anywhere_is_refused(scripted: Served, kind: str) -> None:
    answer = scripted.ask("POST", "/v1/chat/completions", BODY, headers={"Content-Type": kind})
    assert (answer.status, answer.error["type"]) == (415, "invalid_request_error")


def test_what_says_nothing_of_its_kind_is_refused(scripted: Served) -> None:
    head, _, body = post(BODY).partition(b"\r\n\r\n")
    with scripted.connection() as connection:
        connection.sendall(head.replace(b"Content-Type: application/json\r\n", b"") + b"\r\n\r\n" + body)
        assert read_until(connection, b"allowed: application/json").startswith(b"HTTP/1.1 415 ")


MANY = 100_000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": [{}] * 10_000}, "messages[0].role is missing"),
        ({"messages": [1] * 30_000}, "messages[0] is 1"),
        ({"messages": [{"role": "user", "content": [1] * 30_000}]}, "messages[0].content[0] is 1"),
        ({"messages": [{"role": "user", "content": "x"}] * 2049}, "at most 2048"),
        ({"ets": {f"f{number}": 1 for number in range(15_000)}}, "there is no field 'ets.f0'"),
        ({"messages": [{}] * MANY}, "too many values in it; allowed: 32768"),
        ({"ets": {f"f{number}": 1 for number in range(MANY // 2)}}, "too many values"),
    ],
    ids=range(7),
)
def test_a_body_that_is_wrong_in_many_places_is_refused_at_the_first(fields: dict[str, object], message: str) -> None:
    raw = json.dumps(CHAT | fields).encode()
    tracemalloc.start()
    try:
        with pytest.raises(ApiError) as caught:
            _validated(ChatCompletionRequest, raw)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert most < 40e6, "what is kept of a mistake is more than of a value"


def test_a_chat_may_be_long() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "x"}]}
    assert len(_validated(ChatCompletionRequest, json.dumps(CHAT | {"messages": [message] * 2048}).encode()).messages)


def test_a_charset_may_be_named(scripted: Served) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert scripted.ask("POST", "/v1/chat/completions", BODY, headers=headers).status == 200
