"""Connections to servers: half-capable and hostile ones, what they must not learn, and what may not be shown."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import logging
import random
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import SecretStr

import backends
from backends import (
    Backend,
    BackendClosedError,
    BackendError,
    CapabilityError,
    EndpointError,
    PromptError,
    SamplingParams,
    UnknownModelError,
    UnreachableError,
)
from backends.endpoints import addresses
from backends.endpoints.client import Client
from backends.openai import OpenAIBackend
from backends.retries import RetryPolicy
from tests.fake_server import Drawn, FakeServer, Fault, FaultPlan, Kind, ScriptedModel
from tests.fake_server.server import serve as serve_app
from tests.virtual_time import pass_time

SCRIPT = {"3 + 4 = 7 so #### 7": 3.0, "3 + 4 = 8 so #### 8": 1.0, "I think seven": 1.0}
QUESTION = "What is 3 + 4?"
QUICK = RetryPolicy(attempts=3, first_delay=0.001, longest_delay=0.002, deadline=60.0)
ONCE = RetryPolicy(attempts=1, deadline=60.0)
KEY = "sk-very-secret-0123456789"
PLAIN = SamplingParams()

Answer = tuple[int, Any]
"""Status and body: text is sent as a page, anything else as JSON."""
Handler = Callable[[str, Mapping[str, Any], Mapping[str, str]], Answer]
"""What to answer, given path, JSON and headers."""

NOT_FOUND: Answer = (404, {"error": {"message": "no such path"}})
MODELS: Answer = (200, {"data": [{"id": "m"}]})


@dataclass
class Stub:
    """A server that answers as a function says."""

    base_url: str
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [body for asked, body in self.asked if asked == path]


@contextlib.asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[Stub]:
    """Serve in this event loop."""
    listener = socket.create_server(("127.0.0.1", 0))
    stub = Stub(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        body = json.loads(raw) if raw else {}
        stub.asked.append((scope["path"], body))
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        status, answer = handler(scope["path"], body, headers)
        kind = b"text/html" if isinstance(answer, str) else b"application/json"
        sent = (
            answer if isinstance(answer, bytes) else (answer if kind == b"text/html" else json.dumps(answer)).encode()
        )
        head = [(b"content-type", kind), (b"content-length", str(len(sent)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": sent})

    stop, ready = asyncio.Event(), asyncio.Event()
    application: Any = app
    task = asyncio.create_task(serve_app(application, listener, stop, ready.set))
    await ready.wait()
    try:
        yield stub
    finally:
        stop.set()
        await task


def texts(body: Mapping[str, Any]) -> list[str]:
    """Return as many texts as a request wants, which its seed decides."""
    first = body.get("seed", random.getrandbits(32))
    return [str(random.Random(first + row).random()) for row in range(body.get("n", 1))]


def completion(body: Mapping[str, Any], **more: Any) -> Answer:
    """Answer a request for completions."""
    choices = [{"index": i, "text": text, "finish_reason": "stop", **more} for i, text in enumerate(texts(body))]
    return 200, {"choices": choices, "usage": {"completion_tokens": len(choices)}}


def chat(body: Mapping[str, Any], **more: Any) -> Answer:
    """Answer a request for a chat."""
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}
        for i, text in enumerate(texts(body))
    ]
    return 200, {"choices": choices, "usage": {"completion_tokens": len(choices)}}


def completions_only(path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
    """Be a server of plain completions."""
    return {"/v1/models": MODELS, "/v1/completions": completion(body)}.get(path, NOT_FOUND)


def chat_only(path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
    """Be a server of chats."""
    return {"/v1/models": MODELS, "/v1/chat/completions": chat(body)}.get(path, NOT_FOUND)


def but(handler: Handler, path: str, answer: Answer, *, having: str | None = None) -> Handler:
    """Be another server, but answer so on one path, where a request has a certain field."""

    def instead(asked: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        return answer if asked == path and (having is None or having in body) else handler(asked, body, headers)

    return instead


async def connect(stub: Stub, **options: Any) -> OpenAIBackend:
    return await OpenAIBackend.connect("m", stub.base_url, **({"retries": QUICK} | options))


async def connect_fake(server: FakeServer, **options: Any) -> OpenAIBackend:
    return await OpenAIBackend.connect("scripted", server.base_url, **({"retries": QUICK} | options))


def able(backend: OpenAIBackend) -> set[str]:
    """Return the names of all that a backend can do."""
    known = backend.capabilities
    return {name for name in known.__dataclass_fields__ if getattr(known, name)}


def everything_said(error: BaseException) -> str:
    """All texts of an error and of those that it came from."""
    said, link = "", error
    while link is not None:
        said += f"{link} {link!r} "
        link = link.__cause__ or link.__context__  # type: ignore[assignment]
    return said


# What a server can do


async def full_abilities(**options: Any) -> tuple[set[str], int]:
    """Return what a server can do where nothing goes wrong, and how many requests it took to find out."""
    with FakeServer(ScriptedModel(SCRIPT), **options) as server:
        async with await connect_fake(server) as backend:
            return able(backend), server.records.total


@pytest.mark.parametrize("profile", ["vllm", "completions", "chat"])
@pytest.mark.parametrize("kind", ["fewer_choices", "empty_text", "no_logprobs", "malformed_json", "server_error"])
async def test_one_unusable_answer_does_not_make_a_server_less_able(profile: Any, kind: Kind) -> None:
    expected, requests = await full_abilities(profile=profile)
    for index in range(requests):
        with FakeServer(ScriptedModel(SCRIPT), profile=profile, faults=FaultPlan.at({index: kind})) as server:
            async with await connect_fake(server) as backend:
                assert able(backend) == expected, f"request {index} had the fault"


async def test_connecting_takes_few_requests() -> None:
    assert (await full_abilities(profile="vllm"))[1] <= 10
    for profile in ("completions", "completions_no_n", "chat", "chat_no_n"):
        assert (await full_abilities(profile=profile))[1] <= 24


async def test_a_server_that_should_be_more_able_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for field_name, expected in (
        ("logprobs", "it gives no log-probabilities"),
        ("prompt_logprobs", "it cannot be ETS-IS's reference"),
        ("return_token_ids", "it is asked by text"),
    ):
        caplog.clear()
        faults = FaultPlan.when(lambda asked, name=field_name: name in (asked.body or {}), "no_logprobs")  # type: ignore[misc]
        if field_name == "return_token_ids":
            faults = FaultPlan.when(lambda asked: "return_token_ids" in (asked.body or {}), "empty_text")
        with FakeServer(ScriptedModel(SCRIPT), faults=faults) as server:
            async with await connect_fake(server):
                pass
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == 1
        assert expected in warnings[0]
        assert server.base_url in warnings[0]


async def test_a_healthy_server_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for profile in ("vllm", "completions", "completions_no_n", "chat", "chat_no_n"):
        await full_abilities(profile=profile)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("tops", [[], [{}]])
async def test_alternatives_that_are_missing_mean_no_log_probabilities(tops: list[Any]) -> None:
    def completing(path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        listed = {"tokens": ["x"], "token_logprobs": [-0.1], "top_logprobs": tops}
        if path == "/v1/completions" and "logprobs" in body:
            return completion(body, logprobs=listed)
        return completions_only(path, body, headers)

    def chatting(path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        listed = {"content": [{"token": "x", "logprob": -0.1, "top_logprobs": tops}]}
        if path == "/v1/chat/completions" and "logprobs" in body:
            return chat(body, logprobs=listed)
        return chat_only(path, body, headers)

    for handler in (completing, chatting):
        async with answering(handler) as stub, await connect(stub) as backend:
            assert not backend.capabilities.logprobs
            assert not backend.capabilities.confidence


@pytest.mark.parametrize("field_name", ["max_tokens", "max_completion_tokens"])
async def test_a_model_that_thinks_first_can_be_connected_to(field_name: str) -> None:
    def thinking(path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        if path != "/v1/chat/completions":
            return chat_only(path, body, headers)
        if field_name not in body:
            return 400, {"error": {"message": f"use {field_name}"}}
        if (budget := body[field_name]) >= 100:
            return chat(body)
        silent = {"message": {"content": "", "reasoning_content": "Hm"}, "finish_reason": "length"}
        choices = [{"index": row, **silent} for row in range(body.get("n", 1))]
        return 200, {"choices": choices, "usage": {"completion_tokens": budget * len(choices)}}

    async with answering(thinking) as stub, await connect(stub) as backend:
        start = await backend.begin(QUESTION, max_tokens=200, params=PLAIN)
        ((row,),) = await backend.rollout([start], 1, seed=0)
        assert row.text
        assert stub.asked[-1][1][field_name] == 200


async def test_seeds_are_as_wide_as_a_server_takes_them() -> None:
    def narrow(path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        if body.get("seed", 0) + body.get("n", 1) > 2**31:
            return 400, {"error": {"message": "seed must fit into 32 bits"}}
        return completions_only(path, body, headers)

    for handler, width in ((narrow, 31), (completions_only, 53)):
        async with answering(handler) as stub, await connect(stub) as backend:
            assert backend.capabilities.seed
            known = len(stub.asked)
            start = await backend.begin(QUESTION, max_tokens=10, params=PLAIN)
            first = await backend.rollout([start] * 20, 3, seed=1)
            assert first == await backend.rollout([start] * 20, 3, seed=1)
            seeds = [body["seed"] for _, body in stub.asked[known:]]
            assert len(set(seeds)) == 20
            assert 2 ** (width - 2) < max(seeds) < 2**width


async def test_a_request_has_as_many_rows_as_a_server_gives() -> None:
    for most in (1, 2, 8, 128):

        def limited(path: str, body: Mapping[str, Any], headers: Mapping[str, str], most: int = most) -> Answer:
            if body.get("n", 1) > most:
                return 400, {"error": {"message": f"n is at most {most}"}}
            return completions_only(path, body, headers)

        async with answering(limited) as stub, await connect(stub) as backend:
            start = await backend.begin(QUESTION, max_tokens=10, params=PLAIN)
            known = len(stub.asked)
            assert len(await backend.extend(start, 16, tokens=10, seed=1)) == 16
            assert len(stub.asked) - known == -(-16 // most)


async def test_a_server_that_gives_all_rows_one_seed_is_asked_for_each() -> None:
    def alike(path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        if path != "/v1/completions":
            return completions_only(path, body, headers)
        (text,) = texts({**body, "n": 1})
        choices = [{"index": row, "text": text, "finish_reason": "stop"} for row in range(body.get("n", 1))]
        return 200, {"choices": choices, "usage": {"completion_tokens": len(choices)}}

    async with answering(alike) as stub, await connect(stub) as backend:
        start = await backend.begin(QUESTION, max_tokens=10, params=PLAIN)
        assert len({state.text for state in await backend.extend(start, 6, tokens=10, seed=1)}) == 6


class Unseeded(ScriptedModel):
    """A model whose server does not look at seeds."""

    def __init__(self, *args: Any) -> None:
        """Draw the same each time the test is run: once in some hundred times, enough rows are alike by chance."""
        super().__init__(*args)
        self._drawing = random.Random(0)

    async def draw(self, prompt: Sequence[int], seeds: Sequence[int], **options: Any) -> list[Drawn]:
        """Draw one row for each seed, whatever it is."""
        return await super().draw(prompt, [self._drawing.getrandbits(60) for _ in seeds], **options)


@pytest.mark.parametrize("profile", ["vllm", "completions", "chat"])
async def test_seeds_that_a_server_ignores_are_not_promised(profile: Any) -> None:
    answers = [" ".join(str(random.Random(i).random())) for i in range(50)]
    for model, promised in ((Unseeded(answers), False), (ScriptedModel(answers), True)):
        with FakeServer(model, profile=profile) as server:
            async with await connect_fake(server) as backend:
                assert backend.capabilities.seed == promised


@pytest.mark.parametrize(
    ("refused", "sent"),
    [
        (set(), {"presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1, "min_p": 0, "top_k": 0}),
        ({"min_p"}, {"presence_penalty": 0, "frequency_penalty": 0}),
        ({"min_p", "presence_penalty"}, {}),
    ],
)
@pytest.mark.parametrize("handler", [completions_only, chat_only])
async def test_parameters_with_other_defaults_are_set_where_a_server_takes_them(
    handler: Handler, refused: set[str], sent: dict[str, float]
) -> None:
    def picky(path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        if unknown := refused & body.keys():
            return 400, {"error": {"message": f"unknown: {unknown}"}}
        return handler(path, body, headers)

    async with answering(picky) as stub, await connect(stub) as backend:
        start = await backend.begin(QUESTION, max_tokens=10, params=PLAIN)
        await backend.rollout([start], 2, seed=1)
        names = ("presence_penalty", "frequency_penalty", "repetition_penalty", "min_p", "top_k")
        assert {name: stub.asked[-1][1][name] for name in names if name in stub.asked[-1][1]} == sent


async def test_top_k_is_minus_one_where_zero_is_refused() -> None:
    def other(path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        return (400, {"detail": "top_k"}) if body.get("top_k") == 0 else completions_only(path, body, headers)

    async with answering(other) as stub, await connect(stub) as backend:
        start = await backend.begin(QUESTION, max_tokens=10, params=PLAIN)
        await backend.rollout([start], 1, seed=1)
        assert stub.asked[-1][1]["top_k"] == -1


class Shifted(ScriptedModel):
    """A model whose server tells something else than log-probabilities of draws."""

    shift = -30.0

    async def draw(self, prompt: Sequence[int], seeds: Sequence[int], **options: Any) -> list[Drawn]:
        """Draw rows, and shift what is told of them."""
        rows = await super().draw(prompt, seeds, **options)
        for row in rows:
            row.steps = row.steps and [
                tuple(entry._replace(logprob=entry.logprob + self.shift) for entry in step) for step in row.steps
            ]
        return rows


async def test_logits_are_not_taken_for_log_probabilities() -> None:
    for shift, logprobs, score in ((-30.0, False, False), (-0.1, True, False), (-0.001, True, True)):
        model = Shifted(SCRIPT)
        model.shift = shift
        with FakeServer(model) as server:
            async with await connect_fake(server) as backend:
                known = backend.capabilities
                assert (known.logprobs, known.confidence, known.score) == (logprobs, logprobs, score)
                if not logprobs:
                    with pytest.raises(CapabilityError):
                        await backend.begin(QUESTION, max_tokens=8, params=SamplingParams(confidence=True))


# What fails and can be done without

PAGE: Answer = (200, "<!doctype html><title>Sign in</title>")
FORBIDDEN: Answer = (403, {"error": {"message": "not for you"}})
BROKEN: Answer = (500, {"error": {"message": "not implemented"}})


@pytest.mark.parametrize(
    ("handler", "continues"),
    [
        (but(completions_only, "/tokenize", PAGE), True),
        (but(completions_only, "/tokenize", FORBIDDEN), True),
        (but(completions_only, "/tokenize", BROKEN), True),
        (but(completions_only, "/v1/models", FORBIDDEN), True),
        (but(completions_only, "/v1/models", PAGE), True),
        (but(completions_only, "/v1/completions", BROKEN, having="logprobs"), True),
        (but(completions_only, "/v1/completions", BROKEN, having="n"), True),
        (but(completions_only, "/v1/completions", FORBIDDEN, having="seed"), True),
        (but(chat_only, "/v1/completions", BROKEN), False),
        (but(chat_only, "/v1/completions", FORBIDDEN), False),
        (but(chat_only, "/v1/completions", PAGE), False),
    ],
)
async def test_what_fails_and_is_not_needed_is_warned_of_and_done_without(
    handler: Handler, continues: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with answering(handler) as stub, await connect(stub) as backend:
        assert backend.capabilities.continue_prefix == continues
        start = await backend.begin(QUESTION, max_tokens=10, params=PLAIN)
        ((row, *_),) = await backend.rollout([start], 4, seed=1)
        assert row.text
    warnings = {record.getMessage() for record in caplog.records if record.levelno == logging.WARNING}
    assert any("going on without what failed" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, {"error": {"message": "who are you"}}), r"401.*check the key"),
        (BROKEN, r"500: not implemented.*api='completions' or api='chat' asks in one way only"),
        (PAGE, r"no JSON but.*with /v1"),
    ],
)
async def test_a_server_that_fails_altogether_is_told_as_it_failed(answer: Answer, message: str) -> None:
    async with answering(lambda path, body, headers: answer) as stub:
        with pytest.raises(EndpointError, match=message) as caught:
            await connect(stub)
        assert "/v1/completions" in str(caught.value)
        assert not caught.value.retryable


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (400, {"error": {"message": "Your organization must be verified to use this model"}}),
            "/chat/completions: the server answered 400: Your organization must be verified to use this model",
        ),
        (
            (200, {"error": {"message": f"Model m is\noverloaded, {KEY}"}}),
            r"/completions: the answer cannot be used: it has no choices but an error: Model m is overloaded, \(key\)",
        ),
        (completion({}, finish_reason="eos_token"), "/completions: .* for the reason 'eos_token'; allowed: 'stop'"),
        (completion({}, finish_reason=None), "/completions: the answer cannot be used: 'finish_reason' is missing"),
    ],
)
async def test_a_server_that_draws_nothing_is_told_with_what_it_said(answer: Answer, message: str) -> None:
    def refusing(path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        return MODELS if path == "/v1/models" else answer if path.endswith("completions") else NOT_FOUND

    async with answering(refusing) as stub:
        with pytest.raises(BackendError, match=message) as caught:
            await connect(stub, api_key=KEY)
    assert "neither completions nor chat completions for the model 'm'" in str(caught.value)
    assert "is its name right" not in str(caught.value), "it is listed"
    assert str(caught.value).count(": the answer cannot be used") <= 2, "on each path once"


async def test_an_address_that_lacks_its_end_is_told_so() -> None:
    with FakeServer(ScriptedModel(SCRIPT)) as server:
        for api in ("auto", "tokens"):
            with pytest.raises(BackendError, match="most servers have their API under /v1"):
                await OpenAIBackend.connect("scripted", server.url, retries=QUICK, api=api)
        with pytest.raises(BackendError) as caught:
            await OpenAIBackend.connect("another", server.base_url, retries=QUICK)
    assert "under /v1" not in str(caught.value)


@pytest.mark.parametrize("field_name", ["max_tokens", "max_completion_tokens"])
async def test_a_model_whose_reasoning_uses_up_the_budget_can_be_connected_to(field_name: str) -> None:
    def thinking(path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        if path != "/v1/chat/completions":
            return chat_only(path, body, headers)
        if field_name not in body:
            return 400, {"error": {"message": f"use {field_name}"}}
        if body[field_name] >= 100:
            return chat(body)
        message = "Could not finish the message because max_tokens or model output limit was reached. Please try again."
        return 400, {"error": {"message": message}}

    async with answering(thinking) as stub, await connect(stub) as backend:
        assert able(backend) == {"seed", "chat"}, "what nothing shows is not promised"
        start = await backend.begin(QUESTION, max_tokens=200, params=PLAIN)
        (rows,) = await backend.rollout([start], 4, seed=0)
        assert len({row.text for row in rows}) == 4
        assert stub.asked[-1][1][field_name] == 200


async def test_a_server_that_is_overloaded_is_not_asked_on() -> None:
    async with answering(lambda path, body, headers: (503, {"error": {"message": "later"}})) as stub:
        with pytest.raises(EndpointError, match=r"503: later.*gave up after 3 tries"):
            await connect(stub)
        assert len(stub.asked) == 3


# What servers are told, and what they say


async def test_keys_that_a_server_repeats_are_cut_out() -> None:
    user, password = "somebody-here", "hunter2-hunter2"
    repeated = [
        lambda header: (200, f"bad header: {header}"),
        lambda header: (401, {"error": {"message": f"bad header {header}"}}),
        lambda header: (401, {"detail": f"{user} may not, with {password}"}),
        lambda header: (200, {"choices": [{"index": 0, "text": "", "finish_reason": header}], "data": []}),
        lambda header: (500, {"error": {"message": "x" * 40 + header}}),
        lambda header: (302, {"error": {"message": header}}),
    ]
    for repeat in repeated:
        async with answering(lambda path, body, headers, repeat=repeat: repeat(headers["authorization"])) as stub:  # type: ignore[misc]
            with pytest.raises(BackendError) as with_key:
                await connect(stub, api_key=KEY)
            address = stub.base_url.replace("//", f"//{user}:{password}@")
            with pytest.raises(BackendError) as with_password:
                await OpenAIBackend.connect("m", address, retries=QUICK)
        assert KEY[:12] not in everything_said(with_key.value)
        said = everything_said(with_password.value)
        encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
        assert not [secret for secret in (user, password, encoded[:20]) if secret in said]


@pytest.mark.parametrize("key", ["sk-a\\b'c\"d-0123456789", "two  spaces-key-0123456"])
@pytest.mark.parametrize("wrapped", [str, lambda said: {"foo": said}, lambda said: {"detail": [{"input": said}]}])
async def test_a_key_that_a_server_repeats_within_something_is_cut_out(key: str, wrapped: Callable[[str], Any]) -> None:
    async with answering(lambda path, body, headers: (401, {"error": wrapped(f"bad {key}")})) as stub:
        with pytest.raises(EndpointError, match=r"401: .*bad \(key\)") as caught:
            await connect(stub, api_key=key)
    assert "0123456" not in everything_said(caught.value)


async def test_what_a_server_says_of_its_answer_is_cleaned_and_short() -> None:
    def strange(path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        return 200, {"choices": [{"index": 0, "text": "x", "finish_reason": f"{KEY} " * 200}], "data": []}

    async with answering(strange) as stub:
        client = Client(stub.base_url, api_key=SecretStr(KEY), key_hint="", retries=ONCE, timeout=5.0)

        def read(answer: Any) -> None:
            from backends.endpoints.replies import MalformedError

            raise MalformedError(f"it ended by {answer['choices'][0]['finish_reason']!r}")

        with pytest.raises(EndpointError, match="cannot be used: it ended by") as caught:
            await client.post("/completions", {}, read)
        await client.aclose()
    assert KEY not in everything_said(caught.value)
    assert len(str(caught.value)) < 800


async def test_a_key_that_no_header_can_hold_is_refused_without_showing_it() -> None:
    for key in (KEY + "\n", "sk-sécret"):
        with pytest.raises(BackendError, match="no header can hold") as caught:
            await OpenAIBackend.connect("m", "http://127.0.0.1:9/v1", api_key=key)
        assert key not in everything_said(caught.value)


async def test_other_servers_are_not_told_whose_customer_one_is_of_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Own: own-1")
    told: list[str] = []

    def listening(path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        told.extend([*headers, *headers.values()])
        return completions_only(path, body, headers)

    async with answering(listening) as stub, await connect(stub):
        pass
    assert not {"authorization", "openai-organization", "openai-project", "org-1", "proj-1", "own-1"} & set(told)
    client = Client("https://api.openai.com/v1", api_key=None, key_hint="", retries=ONCE, timeout=1.0)
    sdk = client._sdk()
    assert sdk.default_headers["OpenAI-Organization"] == "org-1"
    await sdk.close()


@pytest.mark.parametrize("line", ["Authorization: Bearer other", "AUTHORIZATION:Bearer other", ": x\nno header"])
async def test_a_server_is_told_its_own_key_whatever_headers_the_environment_has_for_openai(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", line)
    told: list[str | None] = []

    def listening(path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        told.append(headers.get("authorization"))
        return completions_only(path, body, headers)

    async with answering(listening) as stub:
        address = stub.base_url.replace("//", "//me:hidden@")
        for url, key, expected in (
            (stub.base_url, KEY, f"Bearer {KEY}"),
            (stub.base_url, None, None),
            (address, None, f"Basic {base64.b64encode(b'me:hidden').decode()}"),
        ):
            told.clear()
            async with await OpenAIBackend.connect("m", url, api_key=key, retries=QUICK):
                assert set(told) == {expected}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout": "60"}, r"timeout is '60'; allowed: a number above 0, 1e\+09 at most"),
        ({"timeout": None}, "timeout is None"),
        ({"connect_timeout": 0}, "connect_timeout is 0"),
        ({"connect_timeout": None}, "connect_timeout is None"),
        ({"api_key": 5}, "api_key is of type int; allowed: a text"),
        ({"retries": 3}, "retries is 3; allowed: a RetryPolicy"),
        ({"max_concurrency": "8"}, "max_concurrency is '8'; allowed: a whole number"),
        ({"api": ["chat"]}, r"api is \['chat'\]; allowed: auto"),
        ({"base_url": None}, "the address is None; allowed: a text"),
        ({"model": None}, "the model is None; allowed: a name"),
    ],
    ids=str,
)
async def test_arguments_of_another_kind_are_refused_at_once(options: dict[str, Any], said: str) -> None:
    async with answering(completions_only) as stub:
        with pytest.raises(BackendError, match=said):
            await OpenAIBackend.connect(**{"model": "m", "base_url": stub.base_url, "retries": ONCE} | options)
        assert not stub.asked


@pytest.mark.parametrize(
    "url",
    [
        "http://256.1.1.1:80/v1",
        "http://é..com/v1",
        "http://h\x7f/v1",
        "http://h/v1\n",
        "http://127.0.0.1:9/" + "a" * 70_000,
        f"http://{'a' * 70}.com/v1",
        "http://\u2025/v1",
    ],
    ids=lambda url: url[:30],
)
async def test_an_address_that_is_none_is_an_error_of_ours(url: str) -> None:
    with pytest.raises(BackendError) as caught:
        await OpenAIBackend.connect("m", url, retries=ONCE)
    assert len(str(caught.value)) < 500
    with pytest.raises(BackendError):
        await backends.connect(f"vllm/m@{url}", retries=ONCE)


async def test_an_address_in_the_environment_is_shown_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("user:s3cret@host/v1", "http:/user:s3cret@host/v1", "https:user:s3cret@host/v1"):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with pytest.raises(BackendError, match="the address 'host/v1' is no http") as caught:
            await backends.connect("openai/m")
        assert "s3cret" not in everything_said(caught.value)


@pytest.mark.parametrize(
    ("name", "model", "urls"),
    [
        ("m", "m", []),
        ("org/model@1.5", "org/model@1.5", []),
        ("@cf/meta/llama", "@cf/meta/llama", []),
        ("@cf/meta/llama@https://h/v1", "@cf/meta/llama", ["https://h/v1"]),
        ("llama3:8b@HTTP://h:80/v1", "llama3:8b", ["HTTP://h:80/v1"]),
        ("m@http://a/v1, http://u:p@b/v1", "m", ["http://a/v1", "http://u:p@b/v1"]),
    ],
)
def test_models_and_addresses_are_told_apart(name: str, model: str, urls: list[str]) -> None:
    assert addresses.split(name) == (model, urls)


@pytest.mark.parametrize(
    "name",
    [
        "m@u:sw0rd@h:8000/v1",
        "m@u:sw0/sw0rd@h",
        "m@h:8000/v1",
        "@h:8000/v1",
        "m@h/v1",
        "m@//u:sw0rd@h/v1",
        "m@ftp://u:sw0rd@h",
        "m@http:/u:sw0rd@h",
        "m@http://u:sw0/sw0rd@h:9/v1",
        "m@http://u:80/sw0rd@h:9/v1",
        "m@http://u:sw0#sw0rd@h:9/v1",
        "m@http://u:sw0?sw0rd@h:9/v1",
        "m@http://a/v1,http://u:sw0/sw0rd@h/v1",
        "m@http://u:sw0,sw0rd@h/v1",
    ],
)
async def test_what_may_be_meant_as_an_address_is_no_model(name: str) -> None:
    for kind in ("vllm", "openai", "vlmm"):
        with pytest.raises(UnknownModelError) as caught:
            await backends.connect(f"{kind}/{name}")
        assert "sw0" not in everything_said(caught.value)
    with pytest.raises(UnknownModelError, match="allowed: MODEL@http://HOST:PORT/v1"):
        backends.load(f"vllm/{name}")


async def test_half_a_character_in_a_prompt_is_the_prompts_fault() -> None:
    async def draw(backend: OpenAIBackend) -> None:
        start = await backend.begin("What \ud83d?", max_tokens=8, params=PLAIN)
        await backend.rollout([start], 1, seed=0)

    for profile in ("vllm", "completions", "chat"):
        with FakeServer(ScriptedModel(SCRIPT), profile=profile) as server:
            async with await connect_fake(server) as backend:
                asked = server.records.total
                with pytest.raises(PromptError, match="half of a surrogate pair"):
                    await draw(backend)
                assert server.records.total == asked


async def test_json_that_is_nested_without_end_is_no_answer() -> None:
    def nested(path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        return 200, b"[" * 200_000

    async with answering(nested) as stub:
        with pytest.raises(EndpointError, match="not valid JSON"):
            await connect(stub)


async def test_a_proxy_that_lets_nothing_be_sent_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:7890")
    patient = RetryPolicy(attempts=100, first_delay=60.0, deadline=None)
    async with asyncio.timeout(30):
        with pytest.raises(BackendError, match=r"GET .* no connection can be made: .*socks") as caught:
            await OpenAIBackend.connect("m", "http://127.0.0.1:9/v1", retries=patient)
    assert not isinstance(caught.value, EndpointError)
    del caught
    gc.collect()  # Clients that are half made are collected, too.
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    assert not told


# Time


async def test_a_server_that_never_answers_is_given_up_after_the_time_for_the_first_contact() -> None:
    connections: list[asyncio.Task[Any] | None] = []

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            await reader.read()
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(wait, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"

    async def given_up(connecting: Coroutine[Any, Any, Backend], option: str) -> None:
        """Let the time pass that there is once the server has been reached."""
        known, call = len(connections), asyncio.create_task(connecting)
        async with asyncio.timeout(120):
            while len(connections) == known:
                await asyncio.sleep(0.001)
            pass_time(60)
            with pytest.raises(UnreachableError, match=f"no answer within 60 s, which {option} allows") as caught:
                await call
        assert url in str(caught.value)

    patient: dict[str, Any] = {"retries": RetryPolicy(attempts=100, deadline=None), "connect_timeout": 60.0}
    for connecting in (OpenAIBackend.connect("m", url, **patient), backends.connect(f"vllm/m@{url}", **patient)):
        await given_up(connecting, "connect_timeout")
    patient |= {"connect_timeout": 600.0, "timeout": 60.0}
    await given_up(OpenAIBackend.connect("m", url, **patient), "timeout")
    server.close()
    await server.wait_closed()
    await asyncio.wait([task for task in connections if task is not None], timeout=60)
    assert len(connections) == 3


async def test_only_the_list_of_models_has_to_come_in_the_time_for_the_first_contact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bounded: dict[str, float | None] = {}
    send = Client._send

    async def noted(self: Client, what: str, *args: Any, within: float | None = None) -> Any:
        bounded[what.rpartition("/")[2]] = within
        return await send(self, what, *args, within=within)

    monkeypatch.setattr(Client, "_send", noted)
    async with answering(completions_only) as stub, await connect(stub, connect_timeout=7.0):
        pass
    assert bounded == {"models": 7.0, "tokenize": None, "completions": None}


async def test_a_server_that_is_not_up_yet_is_waited_for_as_long_as_the_retries_say() -> None:
    left = [(503, {"error": {"message": "loading"}})] * 5

    def loading(path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        return left.pop() if left else completions_only(path, body, headers)

    patient = RetryPolicy(attempts=10, first_delay=0.1, longest_delay=0.1)
    async with answering(loading) as stub, await connect(stub, retries=patient, connect_timeout=60.0):
        assert not left


async def test_requests_that_wait_to_be_tried_again_end_when_all_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    patient = RetryPolicy(attempts=6, first_delay=0.0, deadline=None)
    with FakeServer(ScriptedModel(SCRIPT)) as server:
        backend = await connect_fake(server, retries=patient)
        state = await backend.begin(QUESTION, max_tokens=20, params=PLAIN)
        server.faults = FaultPlan.always(Fault(kind="unavailable", retry_after=600.0))
        caplog.set_level(logging.INFO, "backends.retries")
        call = asyncio.create_task(backend.extend(state, 1, tokens=20, seed=0))
        async with asyncio.timeout(60):
            while "trying again in 600" not in caplog.text:
                await asyncio.sleep(0.01)
            known = server.records.total
            await backend.aclose()
            with pytest.raises(BackendClosedError, match=r"was closed during POST .*/completions \[ets-"):
                await call
        assert server.records.total == known


async def test_requests_that_wait_for_their_turn_are_not_sent_after_closing() -> None:
    for rounds in range(0, 10, 2):
        with FakeServer(ScriptedModel(SCRIPT)) as server:
            backend = await connect_fake(server)
            server.faults = FaultPlan.always("hang")
            state = await backend.begin(QUESTION, max_tokens=20, params=PLAIN)
            known = server.records.total
            calls = [asyncio.create_task(backend.extend(state, 1, tokens=20, seed=seed)) for seed in range(24)]
            for _ in range(rounds):
                await asyncio.sleep(0)
            await backend.aclose()
            async with asyncio.timeout(20):
                for outcome in await asyncio.gather(*calls, return_exceptions=True):
                    assert isinstance(outcome, BackendClosedError), outcome
            await asyncio.to_thread(server.wait_idle)
            # Those of the turn that was under way may have reached it.
            assert server.records.total - known <= 8


async def test_a_try_ends_in_its_time_however_slowly_a_server_sends() -> None:
    tries: list[asyncio.Task[Any] | None] = []
    sent = 0

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        tries.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n")
            while not reader.at_eof():
                writer.write(b" ")
                await writer.drain()
                sent += 1
                await asyncio.sleep(0.01)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    policy = RetryPolicy(attempts=2, first_delay=0.001, deadline=None)
    client = Client(f"http://127.0.0.1:{port}/v1", api_key=None, key_hint="", retries=policy, timeout=60.0)
    call = asyncio.create_task(client.get("/models", lambda answer: answer))
    async with asyncio.timeout(600):
        while not call.done():
            known = sent
            while sent < known + 2 and not call.done():
                await asyncio.sleep(0.001)
            pass_time(5)  # It never stays silent for long.
        with pytest.raises(EndpointError, match=r"no answer within 60 s \(gave up after 2 tries"):
            await call
    await client.aclose()
    assert len(tries) == 2
    await asyncio.wait([task for task in tries if task is not None], timeout=60)
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("servers", [1, 2])
async def test_a_cancelled_connection_leaves_nothing_behind(servers: int) -> None:
    with contextlib.ExitStack() as stack:
        fakes = [
            stack.enter_context(
                FakeServer(ScriptedModel(SCRIPT), faults=FaultPlan.when(lambda asked: asked.index == 3, "hang"))
            )
            for _ in range(servers)
        ]
        fakes[0].faults = None if servers > 1 else fakes[0].faults
        name = f"vllm/scripted@{','.join(fake.base_url for fake in fakes)}"
        work = asyncio.create_task(backends.connect(name, timeout=30))
        await asyncio.to_thread(fakes[-1].records.wait, lambda records: records.active == 1 and records.total == 4)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        for fake in fakes:
            await asyncio.to_thread(fake.wait_idle)
        assert fakes[-1].records.aborted == 1


async def test_a_server_of_several_that_fails_has_the_others_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[OpenAIBackend] = []
    make = OpenAIBackend.__init__

    def noted(self: OpenAIBackend, *args: Any, **options: Any) -> None:
        make(self, *args, **options)
        opened.append(self)

    monkeypatch.setattr(OpenAIBackend, "__init__", noted)

    def failing(path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        return (402, {"error": {"message": "pay first"}}) if opened else (503, {"error": {"message": "wait"}})

    patient = RetryPolicy(attempts=10_000, first_delay=0.01, longest_delay=0.01, deadline=60.0)
    async with answering(completions_only) as good, answering(failing) as bad:
        with pytest.raises(EndpointError, match="402: pay first"):
            await backends.connect(f"vllm/m@{good.base_url},{bad.base_url}", retries=patient)
        (backend,) = opened
        with pytest.raises(BackendClosedError):
            await backend.begin(QUESTION, max_tokens=8, params=PLAIN)
