"""What is made of answers, errors and odd servers, field by field: at the readers, on the wire, and while probing."""

from __future__ import annotations

import asyncio
import base64
import html
import json
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from pydantic import SecretStr

from backends import (
    BackendClosedError,
    BackendError,
    CapabilityError,
    ContextLengthError,
    EndpointError,
    PromptError,
    SamplingParams,
)
from backends.base import Capabilities, State
from backends.endpoints import replies
from backends.endpoints.addresses import credentials, shown, shown_url, split, valid
from backends.endpoints.backend import EndpointBackend
from backends.endpoints.by_text import TextDialect
from backends.endpoints.by_tokens import TokenDialect
from backends.endpoints.client import Client
from backends.endpoints.dialects import EndpointState, ids_of, messages_of, text_of
from backends.endpoints.per_loop import PerLoop
from backends.endpoints.replies import MalformedError
from backends.endpoints.secrets import hidden
from backends.endpoints.statuses import may_pass, retry_after
from backends.limits import Limiter
from backends.openai import OpenAIBackend, connect_openai
from backends.retries import RetryPolicy
from backends.tokenization import Tokenization
from ets_agent import ETS
from tests.fake_server import FakeServer, Fault, FaultPlan, ScriptedModel
from tests.fake_server.faults import Asked

SCRIPT = {"3 + 4 = 7 so #### 7": 3.0, "3 + 4 = 8 so #### 8": 1.0, "I think seven": 1.0}
QUESTION = "What is 3 + 4?"
KEY = "sk-very-secret-0123456789"
PLAIN = SamplingParams()
TWICE = RetryPolicy(attempts=2, first_delay=0)


async def connect(server: FakeServer, **options: Any) -> OpenAIBackend:
    return await OpenAIBackend.connect("scripted", server.base_url, **({"retries": TWICE} | options))


# Answers


def completion(index: int = 0, **changes: Any) -> dict[str, Any]:
    part = {"token_logprobs": [-1.0, -2.0], "tokens": [" a", " b"]}
    return {"index": index, "text": " a b", "finish_reason": "stop", "token_ids": [7, 8], "logprobs": part} | changes


def chat(index: int = 0, content: Any = "yes", **changes: Any) -> dict[str, Any]:
    return {"index": index, "message": {"content": content}, "finish_reason": "stop", "logprobs": None} | changes


def test_choices_are_in_the_order_of_their_numbers_whatever_that_of_the_answer() -> None:
    answer = {"choices": [completion(2, text="c"), completion(0, text="a"), completion(1, text="b")]}
    read = replies.completions(answer, 3, budget=5, logprobs=False, ids=True)
    assert [choice.text for choice in read] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "changes",
    [
        {"finish_reason": "abort"},
        {"finish_reason": None},
        {"index": 1},
        {"token_ids": [7]},
        {"token_ids": [7, True]},
        {"token_ids": []},
        {"text": None},
        {"logprobs": {"token_logprobs": [-1.0, -2.0], "tokens": [" a"]}},
        {"logprobs": {"token_logprobs": [-1.0, None], "tokens": [" a", " b"]}},
        {"logprobs": {"token_logprobs": [-1.0, math.nan], "tokens": [" a", " b"]}},
        {"logprobs": {"token_logprobs": [-1.0, math.inf], "tokens": [" a", " b"]}},
        {"logprobs": {"token_logprobs": [-1.0, 10**400], "tokens": [" a", " b"]}},
    ],
    ids=str,
)
def test_a_completion_with_something_wrong_is_not_used(changes: dict[str, Any]) -> None:
    assert replies.completions({"choices": [completion()]}, 1, budget=2, logprobs=True, ids=True)
    with pytest.raises(MalformedError):
        replies.completions({"choices": [completion(**changes)]}, 1, budget=2, logprobs=True, ids=True)


def test_a_message_that_is_no_text_is_not_used() -> None:
    with pytest.raises(MalformedError):
        replies.chats({"choices": [chat(content=["yes"])]}, 1, budget=2, logprobs=False)


def test_a_number_of_tokens_without_end_is_not_used() -> None:
    more = {"completion_tokens": 1, "prompt_tokens": 1, "total_tokens": 10**400}
    for usage in ({"completion_tokens": 10**400}, more):
        answer = {"choices": [chat(finish_reason="length")], "usage": usage}
        with pytest.raises(MalformedError, match="the number of its tokens"):
            replies.chats(answer, 1, budget=9, logprobs=False)


@pytest.mark.parametrize(
    ("budget", "told", "limited"), [(2, 1, False), (4, 1, False), (8, 4, True), (16, 13, False), (100, 89, True)]
)
def test_a_few_tokens_that_a_server_does_not_count_are_no_limit(budget: int, told: int, limited: bool) -> None:
    answer = {"choices": [chat(finish_reason="length")], "usage": {"completion_tokens": told}}
    if limited:
        with pytest.raises(CapabilityError, match="a limit of its own"):
            replies.chats(answer, 1, budget=budget, logprobs=False)
    else:
        (choice,) = replies.chats(answer, 1, budget=budget, logprobs=False)
        assert choice.num_tokens == budget


async def test_half_a_character_from_a_server_can_be_sent_on_and_saved() -> None:
    def broken(body: Any, answer: dict[str, Any]) -> dict[str, Any]:
        return choices(answer, lambda choice: {"text": "ok \ud83d there"})

    with FakeServer(ScriptedModel({"ok then all": 1.0}), profile="completions") as server:
        async with await connect(server) as backend:
            server.faults = altering(broken)
            ets = ETS(backend, "self_consistency", num_candidates=2, num_rollouts=2, block_size=2, max_tokens=8)
            result = await ets.complete(QUESTION, seed=0)
    assert "ok \N{REPLACEMENT CHARACTER} there" in result.text
    assert result.model_dump_json()


async def test_half_a_character_in_an_error_can_be_saved() -> None:
    with FakeServer(ScriptedModel(SCRIPT)) as server:
        async with await connect(server) as backend:
            start = await backend.begin(QUESTION, max_tokens=9, params=PLAIN)
            error = EndpointError("the server answered 500: \ud83d")
            (row,) = backend._completions(backend._requests(start, 1, 9, [0], logprobs=False)[0], error)  # type: ignore[arg-type]
    assert row.error == "the server answered 500: \N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("budget", [2.5, 4.0, True, "4", None, 0])
async def test_a_budget_that_is_no_number_of_tokens_is_refused(budget: Any) -> None:
    with FakeServer(ScriptedModel(SCRIPT)) as server:
        async with await connect(server) as backend:
            with pytest.raises(PromptError, match="max_tokens must be a whole number of at least 1, not"):
                await backend.begin(QUESTION, max_tokens=budget, params=PLAIN)


def test_minus_infinity_is_read_as_what_it_stands_for() -> None:
    part = {"token_logprobs": [-9999.0, -1.0], "tokens": [" a", " b"]}
    (choice,) = replies.completions({"choices": [completion(logprobs=part)]}, 1, budget=2, logprobs=True, ids=True)
    assert choice.logprobs == (-math.inf, -1.0)
    assert list(choice.token_texts) == [" a", " b"]


@pytest.mark.parametrize(
    ("total", "counts"),
    [
        (21, [10, 5, 5]),
        (99, [10, 10, 10]),
        (None, [10, 10, 10]),
    ],
)
def test_tokens_that_only_their_total_is_known_of_are_shared_among_those_that_stopped(
    total: int | None, counts: list[int]
) -> None:
    choices = [chat(0, finish_reason="length"), chat(1), chat(2)]
    usage = None if total is None else {"completion_tokens": total}
    read = replies.chats({"choices": choices, "usage": usage}, 3, budget=10, logprobs=False)
    assert [choice.num_tokens for choice in read] == counts


def test_tokens_of_what_a_filter_has_ended_are_not_those_of_the_others() -> None:
    filtered = [chat(index, finish_reason="content_filter") for index in (1, 2, 3)]
    answer = {"choices": [chat(0), *filtered], "usage": {"completion_tokens": 5 + 3 * 60}}
    read = replies.chats(answer, 4, budget=100, logprobs=False)
    assert [choice.num_tokens for choice in read] == [46, 0, 0, 0]


def test_tokens_that_are_known_are_not_shared() -> None:
    listed = {"content": [{"logprob": -1.0}] * 7}
    answer = {"choices": [chat(0, logprobs=listed), chat(1, logprobs={"content": []})]}
    answer["usage"] = {"completion_tokens": 10}  # type: ignore[assignment]
    read = replies.chats(answer, 2, budget=100, logprobs=True)
    assert [choice.num_tokens for choice in read] == [7, 3]


def test_scores_are_those_of_the_tokens_that_were_asked_for_at_the_end_of_the_prompt() -> None:
    drawn = {"logprob": -2.0, "decoded_token": "<|end|>"}
    told = [None, {"5": {"logprob": -9.0}}, {"7": drawn, "8": {"logprob": -0.1}}, {"6": {"logprob": -3.0}}]
    answer = {"choices": [{"index": 0, "prompt_logprobs": told}]}
    assert replies.prompt_logprobs(answer, [[7, 6]]) == [replies.Told(logprobs=(-2.0, -3.0), texts=("<|end|>", ""))]
    for wanted in ([6, 7], [9, 6], [1, 5, 7, 6], [6, 1, 5, 7, 6]):
        with pytest.raises(MalformedError):
            replies.prompt_logprobs(answer, [wanted])


# Statuses, headers and addresses


def test_which_statuses_are_worth_another_try() -> None:
    assert {status for status in range(400, 600) if may_pass(status)} == {
        408, 409, 425, 429, *set(range(500, 600)) - {501, 505},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "2"}, 2.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "in a while"}, None),
        ({"retry-after": "86400"}, 86400.0),
        ({"retry-after": "86401"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e400"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after-ms": "1e400", "retry-after": "2"}, 2.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 -9999"}, None),
        ({"retry-after": "Fri, 31 Dec 99999999999999999999 23:59:59 GMT"}, None),
        ({"retry-after": "Fri, 31 Dec 2999 23:59:59 +99999999999999999999"}, None),
        ({"retry-after": "Thu, 01 Jan 0001 00:00:00 +2359"}, 0.0),
        ({"retry-after": ""}, None),
    ],
    ids=str,
)
def test_the_wait_that_a_server_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo", "UTC"])
@pytest.mark.parametrize(
    "form",
    [
        "%a, %d %b %Y %H:%M:%S GMT",
        "%A, %d-%b-%y %H:%M:%S GMT",
        "%a %b %d %H:%M:%S %Y",
        "%a, %d %b %Y %H:%M:%S -0000",
        "%a, %d %b %Y %H:%M:%S",
    ],
)
def test_dates_are_in_utc_wherever_this_is(zone: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = datetime(2030, 5, 6, 7, 8, 9, tzinfo=UTC)
    monkeypatch.setattr("backends.endpoints.statuses.time.time", lambda: moment.timestamp() - 10)
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert retry_after({"retry-after": moment.strftime(form)}) == 10
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://me:p@ss@a/v1?key=secret", "http://a/v1"),
        ("me:secret@a/v1", "a/v1"),
        ("https:me:secret@a/v1", "a/v1"),
        ("//me:sec/ret@a/v1", "a/v1"),
        ("http://me:sec?ret@a/v1", "http://…"),
        ("http://a/v1?key=sec@ret", "http://…"),
        ("HTTP://a:80/v1", "HTTP://a:80/v1"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_anything_secret(url: str, expected: str) -> None:
    assert shown_url(url) == expected


def escaped(secret: str) -> dict[str, str]:
    """Return how a secret may look in what a server says."""
    return {
        "plain": secret,
        "repr": repr(secret)[1:-1],
        "repr within repr": repr(repr(f"<<{secret}>>")).partition("<<")[2].partition(">>")[0],
        "JSON": json.dumps(secret)[1:-1],
        "JSON within JSON": json.dumps(json.dumps(secret))[3:-3],
        "percent signs": quote(secret, safe=""),
        "form": quote_plus(secret),
        "HTML": html.escape(secret),
        "one space": " ".join(secret.split()),
    }


@pytest.mark.parametrize("way", escaped(""))
@pytest.mark.parametrize(
    "secret",
    [
        "sk-0123456789",
        "sk-a\\b'c\"d-01",
        "two  spaces\t01",
        "<a&b>/c+d=e%f",
        "pass-wörd-🙂-\\\\'1",
        "()[]{}.*?^$|#~",
        '"\\" "\\',
    ],
)
def test_a_secret_is_found_however_it_is_written(secret: str, way: str) -> None:
    said = f"what is {escaped(secret)[way]}, and why?"
    assert hidden(said, [secret]) == "what is (key), and why?"


def test_texts_without_secrets_are_left_alone() -> None:
    text = 'a  b\\n "c" %20 cd-0123456 me-too'
    assert hidden(text, ["", " ", "d-012345", "-too-long-0123"]) == 'a  b\\n "c" %20 c(key)6 me-too'
    assert hidden("the name of me", ["me"]) == "the name of (key)", "a short one is a word of its own"
    assert hidden("long-key long-key-and-more", ["long-key", "long-key-and-more"]) == "(key) (key)"


def test_finding_a_secret_takes_no_time_in_a_text_made_to_take_long() -> None:
    texts = ("\\" * 20_000, " " * 20_000, "\\n" * 10_000, "%20" * 10_000, '"\\' * 10_000)
    for text in texts:
        assert hidden(text, ['a\\\\\\" \\"b c', '"  \\"\\"']) == text


def test_addresses_are_taken_apart() -> None:
    assert split("org/model@2@http://a/v1, https://b/v1") == ("org/model@2", ["http://a/v1", "https://b/v1"])
    assert not valid("http://a:0/v1")
    assert credentials("http://me:p%40ss@a/v1") == "me:p@ss"
    assert credentials("http://me@a/v1") == "me:", "as it is sent: with a colon"
    assert credentials("http://a/v1?x=@") is None
    assert shown("m@http://me:p@ss@a/v1?key=secret,http://b?key=secret") == "m@http://a/v1,http://b"


# On the wire


@dataclass
class Wire:
    """A server that answers everything alike."""

    url: str
    heads: list[str]


@asynccontextmanager
async def answering(body: Any, status: int = 200, **headers: str) -> AsyncIterator[Wire]:
    heads: list[str] = []
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "text/html" if isinstance(body, bytes) else "application/json"
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += [f"Content-Type: {kind}", f"Content-Length: {len(raw)}", "Connection: close"]
    head = "\r\n".join([f"HTTP/1.1 {status} Said", *lines]) + "\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        _, _, length = heads[-1].lower().partition("content-length:")
        await reader.readexactly(int(length.split()[0]) if length else 0)  # Or the end would be a reset.
        writer.write(head.encode() + raw)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield Wire(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", heads)


def client(url: str, *, key: str | None = KEY, retries: RetryPolicy = TWICE) -> Client:
    secret = None if key is None else SecretStr(key)
    return Client(url, api_key=secret, key_hint="the hint", retries=retries, timeout=60)


def said(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


@pytest.mark.parametrize(
    ("status", "body", "headers", "kind", "tries", "message"),
    [
        (400, said("too hot"), {}, EndpointError, 1, "answered 400: too hot"),
        (400, said("no", code="context_length_exceeded"), {}, ContextLengthError, 1, "answered 400: no"),
        (400, said("This model's maximum context length is 9"), {}, ContextLengthError, 1, "is 9"),
        (500, said("the cache is beyond the maximum context length"), {}, EndpointError, 2, "answered 500"),
        (401, said("who?"), {}, EndpointError, 1, "who?; check the key (the hint)"),
        (403, said("not you"), {}, EndpointError, 1, "not you; check the key (the hint)"),
        (404, {"detail": "Not Found"}, {}, EndpointError, 1, "404: Not Found; check the model's name and the address"),
        (429, said("slowly"), {}, EndpointError, 2, "answered 429: slowly"),
        (429, said("pay", code="insufficient_quota"), {}, EndpointError, 1, "answered 429: pay"),
        (429, said("no"), {"x_should_retry": "false"}, EndpointError, 1, "answered 429: no"),
        (400, said("yes"), {"x_should_retry": "true"}, EndpointError, 2, "answered 400: yes"),
        (502, b"<html>bad gateway</html>", {}, EndpointError, 2, "answered 502: <html>bad gateway</html>"),
    ],
)
async def test_what_becomes_of_an_answer_that_is_none(
    status: int, body: Any, headers: dict[str, str], kind: type[Exception], tries: int, message: str
) -> None:
    async with answering(body, status, **headers) as wire:
        asking = client(wire.url)
        with pytest.raises(BackendError) as caught:
            await asking.post("/completions", {}, lambda answer: answer)
        await asking.aclose()
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert len(wire.heads) == tries
    if status != 200 and isinstance(caught.value, EndpointError) and kind is EndpointError:
        assert caught.value.status == status


async def test_the_wait_that_a_server_asks_for_is_known_to_whoever_tries_later() -> None:
    async with answering(said("later"), 429, retry_after="7") as wire:
        asking = client(wire.url, retries=RetryPolicy(attempts=1))
        with pytest.raises(EndpointError) as caught:
            await asking.get("/models", lambda answer: answer)
        await asking.aclose()
    assert (caught.value.status, caught.value.retry_after) == (429, 7.0)


async def test_a_message_without_end_is_cut() -> None:
    async with answering(said("x" * 100_000), 400) as wire:
        asking = client(wire.url)
        with pytest.raises(EndpointError) as caught:
            await asking.get("/models", lambda answer: answer)
        await asking.aclose()
    assert len(str(caught.value)) < 1000


async def test_a_user_in_the_address_is_sent_instead_of_a_key_and_kept_out_of_messages() -> None:
    async with answering(said("me:p@ss is not welcome"), 401) as wire:
        asking = client(wire.url.replace("//", "//me:p%40ss@") + "/", key=None)
        assert asking.url == wire.url
        with pytest.raises(EndpointError, match=r"\(key\) is not welcome") as caught:
            await asking.get("/models", lambda answer: answer)
        await asking.aclose()
    assert "p@ss" not in str(caught.value)
    assert "GET /v1/models " in wire.heads[0]
    assert f"authorization: basic {base64.b64encode(b'me:p@ss').decode()}".lower() in wire.heads[0].lower()


async def test_a_request_is_given_the_time_that_was_asked_for() -> None:
    with FakeServer(ScriptedModel(SCRIPT)) as server:
        server.faults = FaultPlan.always("hang")
        with pytest.raises(EndpointError, match=r"no answer within 0\.1 s"):
            async with asyncio.timeout(60):
                await connect(server, timeout=0.1)


async def test_all_tries_together_take_twice_the_time_of_one_by_default() -> None:
    server = FakeServer(ScriptedModel(SCRIPT))
    # The first request, which has one try only, is let through.
    server.faults = FaultPlan.when(lambda asked: asked.body is not None, Fault(kind="rate_limit", retry_after=60.0))
    with server, pytest.raises(EndpointError, match="a wait of 60 s, and the deadline is 60 s"):
        await connect(server, timeout=30.0, retries=None)


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan, 1e308, 10**400])
@pytest.mark.parametrize("option", ["timeout", "connect_timeout"])
async def test_a_timeout_that_is_none_is_refused(option: str, seconds: float) -> None:
    given: Any = {option: seconds}
    with pytest.raises(BackendError, match=f"^{option} is"):
        await OpenAIBackend.connect("m", "http://127.0.0.1:9/v1", **given)


async def test_the_address_in_the_name_counts_more_than_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[str] = []

    async def connected(model: str, url: str, **options: Any) -> None:
        tried.append(url)

    monkeypatch.setattr(OpenAIBackend, "connect", connected)
    for variable in ("http://environment/v1", ""):
        monkeypatch.setenv("OPENAI_BASE_URL", variable)
        await connect_openai("m", "http://name/v1")
        await connect_openai("m", None)
    assert tried == ["http://name/v1", "http://environment/v1", "http://name/v1", "https://api.openai.com/v1"]


# Connections of event loops


async def test_things_of_other_event_loops_are_closed_there_and_no_new_ones_are_made_afterwards() -> None:
    closed: list[tuple[int, object]] = []

    async def close(thing: int) -> None:
        closed.append((thing, asyncio.get_running_loop()))

    made = iter(range(9))
    things = PerLoop("it", lambda: next(made), close)
    started = asyncio.Event()
    here = asyncio.get_running_loop()

    async def elsewhere() -> asyncio.AbstractEventLoop:
        assert await things.get() == 0
        here.call_soon_threadsafe(started.set)
        while not closed:
            await asyncio.sleep(0.001)
        return asyncio.get_running_loop()

    there = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(elsewhere())))
    await started.wait()
    await things.aclose()
    assert closed == [(0, await there)]
    with pytest.raises(BackendClosedError, match="it is closed"):
        await things.get()


async def test_two_who_close_at_once_close_each_thing_once() -> None:
    closed: list[str] = []

    async def close(thing: str) -> None:
        await asyncio.sleep(0)
        closed.append(thing)

    things = PerLoop("it", lambda: "it", close)
    await things.get()
    await asyncio.gather(things.aclose(), things.aclose())
    assert closed == ["it"]


async def test_the_end_of_an_event_loop_closes_its_thing() -> None:
    closed: list[str] = []

    async def close(thing: str) -> None:
        closed.append(thing)

    things = PerLoop("it", lambda: "connection", close)
    await asyncio.to_thread(lambda: asyncio.run(things.get()))
    assert closed == ["connection"]


async def test_a_connection_that_comes_to_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    aclose = Client.aclose

    async def noted(self: Client) -> None:
        closed.append(self.url)
        await aclose(self)

    monkeypatch.setattr(Client, "aclose", noted)
    with FakeServer(ScriptedModel(SCRIPT), profile="chat") as server:
        with pytest.raises(BackendError):
            await connect(server, api="tokens")
        server.faults = FaultPlan.always("hang")
        call = asyncio.create_task(connect(server))
        await asyncio.to_thread(server.records.wait, lambda records: records.active == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert closed == [server.base_url] * 2


# What is sent, and what becomes of what is drawn


@pytest.mark.parametrize("profile", ["vllm", "completions", "chat"])
async def test_parameters_are_sent_whatever_the_way_to_ask(profile: Any) -> None:
    with FakeServer(ScriptedModel(SCRIPT), profile=profile) as server:
        async with await connect(server) as backend:
            params = SamplingParams(temperature=0.7, top_p=0.9, stop=("so", "7"), logprobs=False)
            start = await backend.begin(QUESTION, max_tokens=9, params=params)
            await backend.rollout([start], 2, seed=5)
            await backend.rollout([start], 1, seed=6)
        two, one = (record.body for record in server.records.all()[-2:])
    fields = {"max_tokens": 9, "temperature": 0.7, "top_p": 0.9, "stop": ["so", "7"]}
    assert {name: two[name] for name in fields} == fields
    assert (two["n"], one.get("n", 1)) == (2, 1)
    assert isinstance(two["seed"], int)
    assert two["seed"] != one["seed"]
    assert "logprobs" not in two


async def test_a_prefix_is_sent_as_text_where_a_server_takes_no_tokens() -> None:
    with FakeServer(ScriptedModel(SCRIPT), profile="completions") as server:
        async with await connect(server) as backend:
            start = await backend.begin(QUESTION, max_tokens=20, params=PLAIN)
            for state in await backend.extend(start, 8, tokens=3, seed=1):
                if not state.finished:
                    ((row,),) = await backend.rollout([state], 1, seed=2)
                    assert server.records.all()[-1].body["prompt"] == QUESTION + state.text
                    assert row.text in SCRIPT
                    expected = math.log(SCRIPT[row.text] / (4 if state.text.startswith("3") else 1))
                    assert row.logprob == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("profile", "path"), [("chat", "/v1/chat/completions"), ("vllm", "/tokenize")])
async def test_the_roles_of_a_chat_are_sent(profile: Any, path: str) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    with FakeServer(ScriptedModel(SCRIPT), profile=profile) as server:
        async with await connect(server) as backend:
            start = await backend.begin(messages, max_tokens=9, params=PLAIN)
            await backend.rollout([start], 1, seed=0)
        assert server.records.all(path)[-1].body["messages"] == messages


@pytest.mark.parametrize("logprobs", [True, False])
async def test_a_stop_string_that_began_in_the_prefix_ends_the_response_where_it_ends(logprobs: bool) -> None:
    params = SamplingParams(stop=("4 = 7 so", "+ 4 =", "seven"), logprobs=logprobs)
    with FakeServer(ScriptedModel(["3 + 4 = 7 so #### 7"])) as server:
        async with await connect(server) as backend:
            start = await backend.begin(QUESTION, max_tokens=20, params=params)
            (state,) = await backend.extend(start, 1, tokens=3, seed=0)
            assert (state.text, state.num_tokens) == ("3 ", 3)
            (ended,) = await backend.extend(state, 1, tokens=4, seed=0)
            ((row,),) = await backend.rollout([state], 1, seed=0)
    assert (ended.text, ended.num_tokens, ended.finish_reason) == ("3 ", 4, "stop")
    assert ended.token_ids == state.token_ids + row.token_ids
    assert (row.text, row.num_tokens, row.finish_reason) == ("3 ", 1, "stop")
    assert row.logprob == (pytest.approx(0.0, abs=1e-6) if logprobs else None)


def test_a_prompt_that_is_sent_otherwise_is_refused_and_no_part_of_it_left_out() -> None:
    prompts: list[Any] = [(7, 8), "What?", (("user", "What?"),), (7, ("user", "What?"))]
    kinds: list[tuple[Any, int]] = [(ids_of, 0), (text_of, 1), (messages_of, 2)]
    for read, own in kinds:
        for place, prompt in enumerate(prompts):
            state = EndpointState(prompt=prompt, params=PLAIN, max_tokens=9)
            if place == own:
                assert read(state)
            else:
                with pytest.raises(BackendError, match="the state's prompt is something else"):
                    read(state)


async def test_log_probabilities_are_those_of_the_tokens_until_the_stop_string() -> None:
    script = {"a b c d": 1.0, "a b c e": 3.0}
    with FakeServer(ScriptedModel(script)) as server:
        async with await connect(server) as backend:
            start = await backend.begin(QUESTION, max_tokens=20, params=SamplingParams(stop=("b c",)))
            (state,) = await backend.extend(start, 1, tokens=2, seed=0)
            (rows,) = await backend.rollout([state], 4, seed=0)
            scores = await backend.score([state], [rows])
    assert [row.logprob for row in rows] == pytest.approx([0.0] * 4, abs=1e-6), "whatever follows does not matter"
    assert scores == [pytest.approx([0.0] * 4, abs=1e-6)]


async def test_a_prompt_that_cannot_be_tokenized_is_the_prompts_fault_and_no_other_failure_is() -> None:
    class Empty(ScriptedModel):
        def encode(self, text: str, *, special: bool) -> list[int]:
            return [] if text == "nothing" else super().encode(text, special=special)

    with FakeServer(Empty(SCRIPT), api_key=KEY) as server:
        async with await connect(server, api_key=KEY) as backend:
            with pytest.raises(PromptError, match="no tokens"):
                await backend.begin("nothing", max_tokens=9, params=PLAIN)
    for status, kind in ((400, PromptError), (422, PromptError), (403, EndpointError), (500, EndpointError)):
        with FakeServer(ScriptedModel(SCRIPT)) as server:
            async with await connect(server) as backend, answering(said("no template"), status) as wire:
                dialect: Any = backend._dialect
                away = client(wire.url, key=None)
                with pytest.raises(kind, match="no template"):
                    await replace(dialect, client=away).encode(QUESTION)
                await away.aclose()


WORD = "aé€🙂 z"


class ByteClient:
    """A client of a server whose tokens are bytes, and which always says `WORD`."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, Any]] = []

    async def post(self, path: str, body: Any, read: Callable[[Any], Any]) -> Any:
        """Answer as vLLM does: of what is drawn, and nothing before it, the text of whole characters."""
        self.bodies.append((path, body))
        if path == "//tokenize":
            return read({"tokens": [0]})
        if path == "//detokenize":
            return read({"prompt": self.text(body["tokens"])})
        begin = len(body["prompt"]) - 1
        drawn = [*WORD.encode(), 256][begin : begin + body["max_tokens"]]
        stopped = drawn[-1] == 256
        text = self.text(drawn[:-1] if stopped else drawn).rstrip("\N{REPLACEMENT CHARACTER}")
        logprobs = {"token_logprobs": [-0.5] * len(drawn), "tokens": [self.text([token]) for token in drawn]}
        return read({"choices": [{
            "index": 0, "text": text, "token_ids": drawn,
            "finish_reason": "stop" if stopped else "length", "logprobs": logprobs if "logprobs" in body else None,
        }]})  # fmt: skip

    def text(self, tokens: list[int]) -> str:
        spelled = bytes(token for token in tokens if token < 256).decode("utf-8", "replace")
        return spelled + "<|end|>" * tokens.count(256)

    def check_open(self) -> None:
        pass


@pytest.mark.parametrize("logprobs", [True, False])
@pytest.mark.parametrize("tokens", [1, 2, 3, 5])
@pytest.mark.parametrize("adopting", [True, False])
async def test_a_character_that_is_split_between_requests_comes_out_whole(
    logprobs: bool, tokens: int, adopting: bool
) -> None:
    known = Capabilities(logprobs=logprobs, score=False, tempered_logprobs=False, tempered_score=False, chat=False)
    sent: Any = ByteClient()
    dialect = TokenDialect(
        client=sent,
        model="m",
        capabilities=known,
        tokenization=Tokenization(probe=(1,)),
        context=None,
        raw_logprobs=True,
    )
    backend = EndpointBackend(dialect, name="m", limiter=Limiter(1))
    start = state = await backend.begin("?", max_tokens=20, params=SamplingParams(logprobs=False))
    while not state.finished:
        (state,) = await backend.extend(state, 1, tokens=tokens, seed=0)
        spelled = bytes(token for token in state.token_ids if token < 256)
        assert state.text == spelled.decode("utf-8", "ignore")
        ((row,),) = await backend.rollout([state], 1, seed=0)
        assert row.text == WORD
        if adopting and not state.finished:
            (state,) = backend.adopt(
                start, [State(text=state.text, num_tokens=state.num_tokens, token_ids=state.token_ids)]
            )
    assert state.text == WORD
    assert any("logprobs" in body for _, body in sent.bodies) == logprobs, "the last token's text is worth it"


class ByteTextClient(ByteClient):
    """The same of a server of text, which says three characters that the seed decides."""

    async def post(self, path: str, body: Any, read: Callable[[Any], Any]) -> Any:
        self.bodies.append((path, body))
        rows = range(body.get("n", 1))
        return read({"choices": [self.choice(body, row) for row in rows]})

    def choice(self, body: Any, row: int) -> dict[str, Any]:
        before = len(body["prompt"]) - 1
        said = "".join(random.Random(body["seed"] + row).choices("aé€🙂", k=3))[before:]
        drawn = [*said.encode(), 256][: body["max_tokens"]]
        stopped = drawn[-1] == 256
        logprobs = {"token_logprobs": [-0.5] * len(drawn), "tokens": [self.text([token]) for token in drawn]}
        return {
            "index": row, "text": self.text(drawn[:-1] if stopped else drawn).rstrip("\N{REPLACEMENT CHARACTER}"),
            "finish_reason": "stop" if stopped else "length", "logprobs": logprobs if "logprobs" in body else None,
        }  # fmt: skip


def text_dialect(client: Any, *, logprobs: bool) -> TextDialect:
    return TextDialect(
        client=client,
        model="m",
        capabilities=Capabilities(logprobs=logprobs),
        raw_logprobs=True,
        most_rows=64,
        seeds=2**53,
        neutral={},
    )


@pytest.mark.parametrize(("tokens", "logprobs"), [(1, True), (2, True), (3, True), (5, True), (1, False)])
async def test_characters_of_several_tokens_are_as_likely_in_short_blocks_as_in_long_ones(
    tokens: int, logprobs: bool
) -> None:
    sent: Any = ByteTextClient()
    dialect = text_dialect(sent, logprobs=logprobs)
    state = EndpointState(prompt="?", params=PLAIN, max_tokens=20)
    wholes = await dialect.draw(state, 64, tokens=20, seed=3, logprobs=False)
    blocks = await dialect.draw(state, 64, tokens=tokens, seed=3, logprobs=False)
    for whole, block in zip(wholes, blocks, strict=True):
        assert block.raw
        assert whole.raw.startswith(block.raw)
        assert block.num_tokens == len(block.raw.encode()) + block.stopped
        # Where a character's last token is the block's, it may have gone on for another one.
        assert block.stopped or tokens <= block.num_tokens <= tokens + 4
    assert {block.raw[0] for block in blocks} == set("aé€🙂")


async def test_rows_that_end_within_a_character_are_asked_for_together() -> None:
    class Slow(ByteTextClient):
        """It answers a row that is asked for again only once all others are, too."""

        def __init__(self) -> None:
            super().__init__()
            self.all_asked = asyncio.Barrier(8)

        async def post(self, path: str, body: Any, read: Callable[[Any], Any]) -> Any:
            if body["max_tokens"] == 2:
                await self.all_asked.wait()
            return await super().post(path, body, read)

        def choice(self, body: Any, row: int) -> dict[str, Any]:
            return super().choice({**body, "seed": 0}, 0) | {"index": row}  # It begins with four bytes.

    sent: Any = Slow()
    dialect = text_dialect(sent, logprobs=True)
    state = EndpointState(prompt="?", params=PLAIN, max_tokens=20)
    async with asyncio.timeout(30):
        rows = await dialect.draw(state, 8, tokens=1, seed=3, logprobs=False)
    assert len({row.raw for row in rows}) == 1
    assert rows[0].num_tokens == len(rows[0].raw.encode()) > 1


async def test_a_text_of_whole_characters_is_not_decoded_again() -> None:
    with FakeServer(ScriptedModel(SCRIPT)) as server:
        async with await connect(server) as backend:
            params = SamplingParams(logprobs=False)
            state = await backend.begin(QUESTION, max_tokens=20, params=params)
            for seed in range(3):
                (state,) = await backend.extend(state, 1, tokens=1, seed=seed)
        assert not server.records.all("/detokenize")


async def test_adopted_states_are_those_of_the_run_that_adopts_them() -> None:
    with FakeServer(ScriptedModel(SCRIPT)) as server:
        async with await connect(server) as backend:
            sure = SamplingParams(confidence=True)
            theirs = await backend.begin(QUESTION, max_tokens=20, params=sure)
            ours = await backend.begin(QUESTION, max_tokens=30, params=SamplingParams(temperature=0.5))
            (whole,) = await backend.extend(theirs, 1, tokens=20, seed=1)
            (part,) = await backend.extend(theirs, 1, tokens=2, seed=1)
            for other in (whole, part):
                bare = State(
                    text=other.text,
                    num_tokens=other.num_tokens,
                    token_ids=other.token_ids,
                    finish_reason=other.finish_reason,
                )
                for state in backend.adopt(ours, [other, bare]):
                    assert isinstance(state, EndpointState)
                    assert (state.params, state.max_tokens, state.confidence) == (ours.params, 30, None)  # type: ignore[attr-defined]
                    assert (state.token_ids, state.finish_reason) == (other.token_ids, other.finish_reason)
            with pytest.raises(BackendError, match="do not continue"):
                backend.adopt(ours, [State(text="?", num_tokens=3, token_ids=part.token_ids)])


# Servers that are not what they seem


@dataclass(frozen=True, slots=True, kw_only=True)
class Altered(Fault):
    """An answer with something changed."""

    change: Callable[[dict[str, Any]], dict[str, Any]]

    def alter(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return the changed answer."""
        return self.change(answer)


def altering(change: Callable[[Any, dict[str, Any]], dict[str, Any]]) -> FaultPlan:
    """Change every answer of a generation, knowing what was asked."""

    def decide(asked: Asked) -> Fault | None:
        altered = Altered(kind="slow", delay=0, change=lambda answer: change(asked.body, answer))
        return altered if asked.generation else None

    return FaultPlan(decide)


def choices(answer: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    return {**answer, "choices": [{**choice, **change(choice)} for choice in answer["choices"]]}


def shifted(by: float, *names: str) -> Callable[[Any, dict[str, Any]], dict[str, Any]]:
    """Add something to all log-probabilities of these parts of a choice."""

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: moved(part) if name != "rank" else part for name, part in value.items()}
        if isinstance(value, list):
            return [moved(part) for part in value]
        return value + by if isinstance(value, float) else value

    return lambda body, answer: choices(answer, lambda choice: {name: moved(choice[name]) for name in names})


async def able(faults: FaultPlan, profile: Any = "vllm", **options: Any) -> set[str]:
    with FakeServer(ScriptedModel(SCRIPT), profile=profile, faults=faults, **options) as server:
        async with await connect(server) as backend:
            known = backend.capabilities
    return {name for name in known.__dataclass_fields__ if getattr(known, name)}


async def test_logits_are_no_log_probabilities() -> None:
    found = await able(altering(shifted(20.0, "logprobs", "prompt_logprobs")))
    assert not found & {"logprobs", "score", "confidence"}
    assert not await able(altering(shifted(20.0, "logprobs")), "completions") & {"logprobs", "confidence"}


async def test_a_server_that_gives_only_the_best_tokens_and_not_the_drawn_ones_has_no_log_probabilities() -> None:
    def change(body: Any, answer: dict[str, Any]) -> dict[str, Any]:
        if body.get("logprobs") != 0:
            return answer
        return choices(answer, lambda choice: {"logprobs": None})

    for profile in ("vllm", "completions"):
        assert not await able(altering(change), profile) & {"logprobs", "score", "confidence"}


async def test_a_chat_without_the_log_probabilities_of_what_was_drawn_has_none() -> None:
    def change(body: Any, answer: dict[str, Any]) -> dict[str, Any]:
        return answer if body.get("top_logprobs") else choices(answer, lambda choice: {"logprobs": None})

    assert not await able(altering(change), "chat") & {"logprobs", "confidence"}


@pytest.mark.parametrize("profile", ["completions", "chat"])
async def test_a_server_that_ignores_n_is_asked_for_each_row(profile: Any) -> None:
    with FakeServer(ScriptedModel(SCRIPT), profile=profile) as server:
        server.faults = altering(lambda body, answer: {**answer, "choices": answer["choices"][:1]})
        async with await connect(server) as backend:
            start = await backend.begin(QUESTION, max_tokens=9, params=PLAIN)
            (rows,) = await backend.rollout([start], 3, seed=1)
        assert len(rows) == 3
        assert all("n" not in record.body for record in server.records.all()[-3:])


async def test_a_server_that_knows_the_budget_by_its_newer_name_is_asked_with_that() -> None:
    with FakeServer(ScriptedModel(SCRIPT), profile="chat") as server:
        server.faults = altering(lambda body, answer: {"choices": []} if "max_tokens" in body else answer)
        async with await connect(server) as backend:
            start = await backend.begin(QUESTION, max_tokens=9, params=PLAIN)
            await backend.rollout([start], 2, seed=1)
        body = server.records.all()[-1].body
    assert body["max_completion_tokens"] == 9
    assert "max_tokens" not in body


async def test_a_server_without_a_list_of_models_is_asked_all_the_same() -> None:
    with FakeServer(ScriptedModel(SCRIPT)) as server:
        app: Any = server._app
        del app._routes["/v1/models"]
        async with await connect(server) as backend:
            assert backend.capabilities.score
            start = await backend.begin(QUESTION, max_tokens=5000, params=PLAIN)
            with pytest.raises(EndpointError, match="max_model_len"):
                await backend.rollout([start], 1, seed=0)


async def test_the_probe_of_tokens_has_no_special_ones() -> None:
    class Marked(ScriptedModel):
        def encode(self, text: str, *, special: bool) -> list[int]:
            return [9] * special + super().encode(text, special=False)

    for model in (ScriptedModel(SCRIPT), Marked(SCRIPT)):
        with FakeServer(model) as server:
            async with await connect(server) as backend:
                assert backend.tokenization is not None
                assert backend.tokenization.probe[0] != 9


async def test_a_temperature_that_the_server_takes_as_it_is_is_allowed() -> None:
    with FakeServer(ScriptedModel(SCRIPT)) as server:
        async with await connect(server) as backend:
            for temperature in (0.01, 2.0):
                assert await backend.begin(QUESTION, max_tokens=9, params=SamplingParams(temperature=temperature))
    with FakeServer(ScriptedModel(SCRIPT), profile="completions") as server:
        async with await connect(server) as backend:
            with pytest.raises(CapabilityError, match="at most 2"):
                await backend.begin(QUESTION, max_tokens=9, params=SamplingParams(temperature=2.5))
