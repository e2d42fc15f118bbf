"""Models through litellm: what they draw, what goes wrong, what is closed; over loopback, and with litellm stubbed."""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import logging
import math
import os
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

import backends
from backends import (
    BackendClosedError,
    BackendError,
    CapabilityError,
    Completion,
    ContextLengthError,
    EndpointError,
    MissingExtraError,
    SamplingParams,
    UnknownModelError,
)
from backends.endpoints import litellm_client
from backends.endpoints.litellm_client import litellm
from backends.limits import Limiter
from backends.litellm import LiteLLMBackend
from backends.retries import RetryPolicy
from ets_agent import ETS
from tests.fake_server import FakeServer, Fault, FaultPlan, Kind, ScriptedModel

from .conformance import bad_requests_are_refused, closing_twice_is_harmless

# litellm ignores this itself where it is imported; pytest sets filters anew for each test.
pytestmark = pytest.mark.filterwarnings("ignore:.*`ReadOnly` qualifier:UserWarning")

KEY = "sk-only-for-this-test-0123456789"
SCRIPT = {"it is 4 #### 4": 3.0, "it is 5 #### 5": 2.0, "no": 1.0}
PLAIN = SamplingParams()
CONFIDENT = SamplingParams(confidence=True)
ONCE = RetryPolicy(attempts=1)
AT_ONCE = RetryPolicy(attempts=6, first_delay=0.0)
MODELS = ["openai/scripted", "hosted_vllm/scripted"]
"""litellm asks the first with OpenAI's SDK, and the second with HTTP clients of its own."""


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(ScriptedModel(SCRIPT), api_key=KEY) as server:
        yield server
        server.wait_idle()


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def at(server: FakeServer, model: str = MODELS[0], **options: Any) -> LiteLLMBackend:
    defaults: dict[str, Any] = {"api_base": server.base_url, "api_key": KEY, "retries": ONCE}
    return LiteLLMBackend(model, **defaults | options)


async def draws(
    backend: backends.Backend, n: int, *, seed: int = 0, params: SamplingParams = PLAIN, max_tokens: int = 20
) -> list[Completion]:
    state = await backend.begin("2 + 2?", max_tokens=max_tokens, params=params)
    (drawn,) = await backend.rollout([state], n, seed=seed)
    return drawn


def texts(completions: list[Completion]) -> list[str]:
    return [completion.text for completion in completions]


def others() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


async def until_busy(server: FakeServer, requests: int = 1) -> None:
    await asyncio.to_thread(server.records.wait, lambda records: records.active >= requests)


async def until_idle(server: FakeServer) -> None:
    await asyncio.to_thread(server.wait_idle)


# What is drawn


async def test_answers_are_drawn_with_one_request_and_have_exact_log_probabilities(
    server: FakeServer, model: str
) -> None:
    async with at(server, model) as backend:
        drawn = await draws(backend, 8, seed=1)
        assert server.records.total == 1
        assert server.records.all()[0].body["n"] == 8
        assert len(set(texts(drawn))) > 1
        for completion in drawn:
            assert completion.logprob == pytest.approx(math.log(SCRIPT[completion.text] / 6))
            assert completion.finish_reason == "stop"
            assert completion.num_tokens == len(completion.text.split()) + 1


async def test_the_same_seed_draws_the_same_and_another_one_something_else(server: FakeServer, model: str) -> None:
    async with at(server, model) as backend:
        assert backend.capabilities.seed
        first = texts(await draws(backend, 8, seed=1))
        assert texts(await draws(backend, 8, seed=1)) == first
        assert any([texts(await draws(backend, 8, seed=seed)) != first for seed in range(2, 5)])
        assert all(0 <= record.body["seed"] < 2**31 - 128 for record in server.records.all())


async def test_an_answer_is_extended_as_a_whole_only(server: FakeServer, model: str) -> None:
    async with at(server, model) as backend:
        assert not backend.capabilities.continue_prefix
        state = await backend.begin("2 + 2?", max_tokens=3, params=PLAIN)
        for new in await backend.extend(state, 8, tokens=3, seed=0):
            assert new.finish_reason == ("stop" if new.text == "no" else "length")
            assert new.text == "no" or (new.text in ("it is 4", "it is 5") and new.num_tokens == 3)
        with pytest.raises(CapabilityError, match="cannot continue a prefix"):
            await backend.extend(state, 1, tokens=2, seed=0)
        with pytest.raises(CapabilityError, match="cannot score"):
            await backend.score([state], [[Completion(text="no", token_ids=(1,))]])


async def test_sampling_parameters_and_messages_are_sent_as_they_are(server: FakeServer, model: str) -> None:
    params = SamplingParams(temperature=0.5, top_p=0.9, stop=("####",))
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2 + 2?"}]
    async with at(server, model) as backend:
        state = await backend.begin(messages, max_tokens=7, params=params)
        ((completion,),) = await backend.rollout([state], 1, seed=0)
    body = server.records.all()[0].body
    sent = {name: body[name] for name in ("temperature", "top_p", "stop", "max_tokens", "messages")}
    assert sent == {"temperature": 0.5, "top_p": 0.9, "stop": ["####"], "max_tokens": 7, "messages": messages}
    assert "n" not in body
    assert completion.text in ("it is 4 ", "it is 5 ", "no")
    assert completion.logprob is None, "the server tells it of the plain distribution, or of another one; who knows"


async def test_neutral_parameters_are_sent_too_because_servers_have_defaults_of_their_own(server: FakeServer) -> None:
    async with at(server) as backend:
        await draws(backend, 1)
    body = server.records.all()[0].body
    assert (body["temperature"], body["top_p"]) == (1.0, 1.0)


async def test_confidence_is_told_where_the_provider_gives_log_probabilities(server: FakeServer, model: str) -> None:
    async with at(server, model) as backend:
        for completion in await draws(backend, 4, params=CONFIDENT):
            assert completion.confidence is not None
            assert completion.confidence.logprob == pytest.approx(math.log(SCRIPT[completion.text] / 6))
        with pytest.raises(CapabilityError, match="temperature 1"):
            await draws(backend, 4, params=SamplingParams(temperature=0.5, confidence=True))


async def test_answers_that_a_server_leaves_out_are_drawn_one_by_one_from_then_on(
    model: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with FakeServer(ScriptedModel(SCRIPT), profile="chat") as full:
        async with at(full, MODELS[0]) as backend:
            expected = texts(await draws(backend, 5, seed=3))
    with FakeServer(ScriptedModel(SCRIPT), profile="chat_no_n") as server:
        async with at(server, model) as backend:
            assert texts(await draws(backend, 5, seed=3)) == expected, "each row has its own seed"
            assert [record.body.get("n") for record in server.records.all()] == [5, None, None, None, None]
            assert texts(await draws(backend, 5, seed=3)) == expected
            assert [record.body.get("n") for record in server.records.all()[5:]] == [None] * 5
    assert "1 answers to a request for 5" in caplog.text


async def test_a_failure_among_answers_drawn_one_by_one_is_the_error_that_is_raised(server: FakeServer) -> None:
    server.faults = FaultPlan.at({0: "fewer_choices", 1: "unavailable"})
    async with at(server) as backend:
        with pytest.raises(EndpointError) as caught:
            await draws(backend, 4)
        assert caught.value.status == 503


async def test_log_probabilities_that_a_provider_never_returns_are_given_up_and_that_is_said(
    server: FakeServer, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults = FaultPlan.always("no_logprobs")
    async with at(server, model) as backend:
        assert backend.capabilities.logprobs
        drawn = await draws(backend, 3)
        assert [completion.logprob for completion in drawn] == [None] * 3
        assert set(texts(drawn)) <= set(SCRIPT)
        assert "no log-probabilities, although litellm lists them" in caplog.text
        assert not backend.capabilities.logprobs
        assert not backend.capabilities.confidence
        await draws(backend, 1)
        assert ["logprobs" in record.body for record in server.records.all()] == [True, False]
        with pytest.raises(CapabilityError, match="cannot tell its confidence"):
            await draws(backend, 1, params=CONFIDENT)


async def test_that_a_provider_returns_no_log_probabilities_is_said_once(
    stub: Stub, caplog: pytest.LogCaptureFixture
) -> None:
    unusable = [{"message": {"content": ""}, "finish_reason": "length"}]
    stub.outcome = litellm.ModelResponse(choices=unusable)
    async with LiteLLMBackend("openai/gpt-4o", api_key=KEY, retries=RetryPolicy(attempts=3, first_delay=0)) as backend:
        results = await asyncio.gather(*(draws(backend, 1) for _ in range(2)), return_exceptions=True)
    assert [type(result) for result in results] == [EndpointError] * 2
    assert len(stub.calls) == 6
    assert caplog.text.count("no log-probabilities, although litellm lists them") == 1


async def test_log_probabilities_that_are_needed_and_not_returned_are_an_error(server: FakeServer, model: str) -> None:
    server.faults = FaultPlan.always("no_logprobs")
    async with at(server, model, retries=AT_ONCE) as backend:
        with pytest.raises(CapabilityError, match="no log-probabilities, although litellm lists them"):
            await draws(backend, 1, params=CONFIDENT)
        assert server.records.total == 1


async def test_log_probabilities_that_are_missing_once_are_asked_for_again(server: FakeServer, model: str) -> None:
    server.faults = FaultPlan.at({1: "no_logprobs"})
    async with at(server, model, retries=AT_ONCE) as backend:
        for _ in range(2):
            assert all(completion.logprob is not None for completion in await draws(backend, 2))
        assert server.records.total == 3


# What litellm says of providers


@pytest.mark.parametrize(
    ("model", "logprobs", "seed", "rows"),
    [
        ("openai/gpt-4o", True, True, 128),
        ("openai/o3-mini", False, True, 128),
        ("anthropic/claude-sonnet-4-5", False, False, 1),
        ("mistral/mistral-large-latest", False, True, 1),
        ("gemini/gemini-2.5-pro", True, True, 128),
        ("ollama/llama3", False, True, 1),
    ],
)
def test_capabilities_are_what_litellm_knows_of_the_provider(model: str, logprobs: bool, seed: bool, rows: int) -> None:
    backend = LiteLLMBackend(model)
    known = backend.capabilities
    assert (known.logprobs, known.confidence, known.seed) == (logprobs, logprobs, seed)
    assert (known.continue_prefix, known.score, known.tempered_logprobs, known.full_support) == (False,) * 4
    assert known.chat
    assert backend.tokenization is None
    assert backend._dialect.most_rows == rows


@pytest.mark.parametrize(
    ("model", "params", "said"),
    [
        ("openai/gpt-4o", SamplingParams(top_k=3), "no top_k"),
        ("openai/gpt-5", SamplingParams(top_p=0.9), r"takes no top_p, which is 0\.9; allowed: 1"),
        ("openai/gpt-5", SamplingParams(stop=("x",)), "takes no stop"),
    ],
)
async def test_parameters_that_a_provider_does_not_take_are_refused_before_anything_is_sent(
    model: str, params: SamplingParams, said: str
) -> None:
    async with LiteLLMBackend(model) as backend:
        with pytest.raises(CapabilityError, match=said):
            await backend.begin("2 + 2?", max_tokens=4, params=params)


async def test_a_value_that_litellm_refuses_is_a_missing_capability_and_not_dropped(server: FakeServer) -> None:
    async with at(server, "openai/gpt-5") as backend:
        with pytest.raises(CapabilityError, match="temperature") as caught:
            await draws(backend, 1, params=SamplingParams(temperature=0.5))
        assert "drop_params" not in str(caught.value)
        assert server.records.total == 0


@pytest.mark.parametrize("model", ["nowhere/model", "gpt-nothing-of-the-kind", "", "/", " ", "openai/"])
def test_a_provider_that_litellm_does_not_have_is_said(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnknownModelError, match="no provider"):
        LiteLLMBackend(model)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout": 0}, "timeout is 0"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"api_base": "localhost:8000"}, "no http"),
        ({"api_base": "ftp://me:hidden@host/"}, "no http"),
        ({"api_base": "http://me:hidden@host/v1"}, "has a user"),
        ({"api_base": "http://host/v1?key=hidden"}, "has a query"),
        ({"extra": {"temperature": 0.1}}, "must not hold 'temperature'"),
        ({"extra": {"fallbacks": ["other"]}}, "must not hold 'fallbacks'"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BackendError, match=said) as caught:
        LiteLLMBackend("openai/x", **options)
    assert "hidden" not in str(caught.value)


async def test_it_obeys_the_laws_that_need_no_steps(server: FakeServer) -> None:
    async with at(server) as backend:
        await bad_requests_are_refused(backend, "2 + 2?")
    await closing_twice_is_harmless(at(server), "2 + 2?")


# Calls of litellm, seen by a stub


class Stub:
    """Stands for `litellm.acompletion`: keeps arguments, and answers or raises."""

    def __init__(self, outcome: Any = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.outcome = outcome

    async def __call__(self, **arguments: Any) -> Any:
        self.calls.append(arguments)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if self.outcome is not None:
            return self.outcome
        choice = {"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
        return litellm.ModelResponse(choices=[choice] * arguments.get("n", 1))


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    stub = Stub()
    monkeypatch.setattr(litellm, "acompletion", stub)
    return stub


@pytest.mark.parametrize(
    ("params", "sent"),
    [
        (PLAIN, {}),
        (SamplingParams(temperature=0.5), {"temperature": 0.5}),
        (SamplingParams(temperature=0), {"temperature": 0.0}),
        (SamplingParams(temperature=1e-40), {"temperature": 0.0}),
        (SamplingParams(top_p=0.5), {"top_p": 0.5}),
    ],
)
async def test_a_claude_is_sent_temperature_or_top_p_because_it_refuses_both(
    stub: Stub, params: SamplingParams, sent: dict[str, float]
) -> None:
    async with LiteLLMBackend("anthropic/claude-sonnet-4-5", api_key=KEY) as backend:
        assert texts(await draws(backend, 2, params=params)) == ["yes", "yes"]
    assert len(stub.calls) == 2
    for call in stub.calls:
        assert {name: call[name] for name in ("temperature", "top_p") if name in call} == sent
        assert not {"n", "seed", "logprobs"} & call.keys()


async def test_litellm_neither_retries_nor_drops_nor_caches(stub: Stub) -> None:
    extra = {"api_version": "2024-10-21"}
    async with LiteLLMBackend("azure/gpt-4o", api_key=KEY, timeout=7, extra=extra) as backend:
        await draws(backend, 1)
    (call,) = stub.calls
    assert (call["num_retries"], call["max_retries"], call["drop_params"], call["timeout"]) == (0, 0, False, 7)
    assert call["cache"] == {"no-cache": True, "no-store": True}
    assert (call["model"], call["api_version"], call["api_key"]) == ("azure/gpt-4o", "2024-10-21", KEY)
    assert call["api_base"] is None
    assert call["litellm_call_id"].startswith("ets-")


def response(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers=headers or {"server": "x"}, request=httpx.Request("POST", "http://x"))


def error(kind: str, said: str = "said", **arguments: Any) -> Exception:
    made: Exception = getattr(litellm.exceptions, kind)(
        **{"message": said, "llm_provider": "openai", "model": "x"} | arguments
    )
    return made


@pytest.mark.parametrize(
    ("raised", "kind", "status", "retryable", "said"),
    [
        (error("RateLimitError", response=response(429)), EndpointError, 429, True, "answered 429: said"),
        (error("RateLimitError", "insufficient_quota"), EndpointError, 429, False, "quota"),
        (error("InternalServerError", response=response(500)), EndpointError, 500, True, "answered 500"),
        (error("InternalServerError"), EndpointError, None, True, "said"),
        (error("APIConnectionError"), EndpointError, None, True, "said"),
        (error("InternalServerError", "Missing credentials. Please"), EndpointError, None, False, "api_key"),
        (error("APIConnectionError", "the api_key client option must be set"), EndpointError, None, False, "key"),
        (error("ServiceUnavailableError"), EndpointError, 503, True, "503"),
        (error("BadGatewayError"), EndpointError, 502, True, "502"),
        (error("APIError", status_code=501), EndpointError, 501, False, "501"),
        (error("APIError", status_code=200), EndpointError, None, True, "said"),
        (error("AuthenticationError"), EndpointError, 401, False, "check the key"),
        (error("PermissionDeniedError", response=response(403)), EndpointError, 403, False, "check the key"),
        (error("NotFoundError"), EndpointError, 404, False, "check the model's name"),
        (error("BadRequestError"), EndpointError, 400, False, "answered 400"),
        (error("ContentPolicyViolationError"), EndpointError, 400, False, "answered 400"),
        (error("UnprocessableEntityError", response=response(422)), EndpointError, 422, False, "answered 422"),
        (error("Timeout"), EndpointError, None, True, "no answer within 300 s"),
        (error("ContextWindowExceededError"), ContextLengthError, None, False, "said"),
        (
            error("UnsupportedParamsError", "x does not take n. To drop these, set drop_params"),
            CapabilityError,
            None,
            False,
            "does not take n.",
        ),
        (ModuleNotFoundError("no boto3", name="boto3"), MissingExtraError, None, False, "pip install boto3"),
        (ZeroDivisionError("odd"), EndpointError, None, False, "litellm failed: ZeroDivisionError: odd"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_errors_of_litellm_become_our_own(
    stub: Stub, raised: Exception, kind: type[Exception], status: int | None, retryable: bool, said: str
) -> None:
    stub.outcome = raised
    tries = RetryPolicy(attempts=2, first_delay=0)
    async with LiteLLMBackend("openai/x", api_key=KEY, retries=tries) as backend:
        with pytest.raises(BackendError) as caught:
            await draws(backend, 1)
    failure = caught.value
    assert type(failure) is kind
    assert said in str(failure)
    assert str(failure).startswith("litellm/openai/x [ets-"), "the message names the request"
    assert "drop_params" not in str(failure)
    assert "Error: " not in str(failure).replace("ZeroDivisionError: ", "")
    assert getattr(failure, "status", None) == status
    assert len(stub.calls) == (2 if retryable else 1)


@pytest.mark.parametrize("place", ["response", "litellm_response_headers"])
async def test_the_wait_that_a_provider_asks_for_is_found_wherever_litellm_has_it(stub: Stub, place: str) -> None:
    stub.outcome = error("RateLimitError")
    setattr(
        stub.outcome,
        place,
        response(429, **{"retry-after": "7"}) if place == "response" else httpx.Headers({"Retry-After": "7"}),
    )
    async with LiteLLMBackend("openai/x", retries=ONCE) as backend:
        with pytest.raises(EndpointError) as caught:
            await draws(backend, 1)
    assert caught.value.retry_after == 7


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "text",
        litellm.ModelResponse(choices=[]),
        litellm.ModelResponse(choices=[{"message": {"content": ""}, "finish_reason": "length"}]),
        litellm.ModelResponse(choices=[{"message": {"content": "x"}, "finish_reason": "content_filter"}]),
    ],
    ids=["nothing", "text", "no choices", "empty", "filtered"],
)
async def test_answers_that_make_no_sense_are_asked_for_again(stub: Stub, answer: Any) -> None:
    stub.outcome = answer if answer is not None else object()
    async with LiteLLMBackend("openai/x", retries=RetryPolicy(attempts=3, first_delay=0)) as backend:
        with pytest.raises(EndpointError, match="cannot be used"):
            await draws(backend, 1)
    assert len(stub.calls) == 3


async def test_keys_of_all_sources_are_kept_out_of_messages(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_PROVIDER_API_KEY", "from-the-environment")
    monkeypatch.setattr(litellm, "openai_key", "from-litellm-itself")
    secrets = [KEY, KEY + "-and-more", "from-the-environment", "from-litellm-itself", "from-extra-arguments"]
    stub.outcome = error("BadRequestError", f"refused: {', '.join(secrets)}")
    backend = LiteLLMBackend(
        "azure/x",
        api_key=KEY,
        extra={"aws_secret_access_key": "from-extra-arguments", "other_token": KEY + "-and-more"},
        retries=ONCE,
    )
    with pytest.raises(EndpointError) as caught:
        await draws(backend, 1)
    for secret in secrets:
        assert secret not in str(caught.value)
    assert "and-more" not in str(caught.value), "a key that begins like another one is no less secret"
    assert str(caught.value).count("(key)") == len(secrets)
    shown = "".join(traceback.format_exception(caught.value))
    assert all(secret not in shown for secret in secrets), "litellm's own error must not be shown as the cause"
    await backend.aclose()


def test_a_provider_whose_answers_cannot_be_limited_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litellm, "get_supported_openai_params", lambda **arguments: ["temperature"])
    with pytest.raises(CapabilityError, match="takes no max_tokens"):
        LiteLLMBackend("openai/x")


async def test_a_key_may_be_a_secret_string(server: FakeServer) -> None:
    async with at(server, api_key=SecretStr(KEY)) as backend:
        assert len(await draws(backend, 1)) == 1


async def test_all_tries_together_take_twice_the_time_of_one_by_default(stub: Stub) -> None:
    stub.outcome = error("RateLimitError", response=response(429, **{"retry-after": "3"}))
    async with LiteLLMBackend("openai/x", timeout=1.0) as backend:
        with pytest.raises(EndpointError, match=r"a wait of 3 s, and the deadline is 2 s"):
            await draws(backend, 1)


async def test_litellms_own_mock_is_read_like_a_provider() -> None:
    async with LiteLLMBackend("anthropic/claude-sonnet-4-5", extra={"mock_response": "it is 4"}) as backend:
        drawn = await draws(backend, 3)
    assert [(c.text, c.finish_reason, c.logprob) for c in drawn] == [("it is 4", "stop", None)] * 3


# Faults of servers


@pytest.mark.parametrize(
    "kind", ["rate_limit", "server_error", "unavailable", "reset", "malformed_json", "truncated", "more_choices"]
)
async def test_a_request_that_failed_is_sent_again(server: FakeServer, model: str, kind: Kind) -> None:
    server.faults = FaultPlan.first(kind, kind)
    async with at(server, model, retries=AT_ONCE) as backend:
        assert set(texts(await draws(backend, 3))) <= set(SCRIPT)
    assert [record.fault for record in server.records.all()] == [kind, kind, None]


@pytest.mark.parametrize(("kind", "status"), [("rate_limit", 429), ("server_error", 500), ("unavailable", 503)])
async def test_a_request_that_keeps_failing_is_sent_as_often_as_allowed_and_no_more(
    server: FakeServer, model: str, kind: Kind, status: int
) -> None:
    server.faults = FaultPlan.always(Fault(kind=kind, retry_after=0.01))
    async with at(server, model, retries=RetryPolicy(attempts=3, first_delay=0)) as backend:
        with pytest.raises(EndpointError, match="gave up after 3 tries") as caught:
            await draws(backend, 2)
    assert (caught.value.status, caught.value.retry_after) == (status, 0.01)
    assert server.records.total == 3


async def test_a_server_that_hangs_is_left_in_time(server: FakeServer, model: str) -> None:
    server.faults = FaultPlan.always("hang")
    async with at(server, model, timeout=2.0) as backend:
        with pytest.raises(EndpointError, match="no answer within 2 s") as caught:
            await draws(backend, 2)
        assert caught.value.status is None
        await until_idle(server)
        assert server.records.aborted == 1


async def test_a_provider_whose_client_keeps_no_time_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def forever(**arguments: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(litellm, "acompletion", forever)
    async with LiteLLMBackend("openai/x", timeout=0.05, retries=ONCE) as backend:
        with pytest.raises(EndpointError, match=r"no answer within 0\.05 s"):
            await draws(backend, 1)
    assert not others()


async def test_a_deadline_over_all_tries_is_kept(server: FakeServer, model: str) -> None:
    server.faults = FaultPlan.always("hang")
    async with at(server, model, timeout=60.0, retries=RetryPolicy(deadline=1.5)) as backend:
        with pytest.raises(EndpointError, match=r"no answer within the deadline of 1\.5 s"):
            await draws(backend, 2)
        await until_idle(server)
    assert not others()


async def test_a_dead_endpoint_is_a_failed_connection(model: str) -> None:
    with FakeServer(ScriptedModel(SCRIPT)) as server:
        address = server.base_url
    async with LiteLLMBackend(model, api_base=address, api_key=KEY, retries=AT_ONCE) as backend:
        with pytest.raises(EndpointError, match="gave up after 6 tries") as caught:
            await draws(backend, 1)
        assert caught.value.status is None


async def test_many_draws_through_all_faults_at_once_all_come_back(server: FakeServer, model: str) -> None:
    kinds: list[Kind] = [
        "rate_limit", "server_error", "unavailable", "reset", "malformed_json", "fewer_choices", "more_choices",
        "truncated",
    ]  # fmt: skip
    server.faults = FaultPlan.random(0.2, seed=5, kinds=kinds, retry_after=0.01)
    async with at(server, model, retries=RetryPolicy(attempts=12, first_delay=0.0), max_concurrency=8) as backend:
        results = await asyncio.gather(*(draws(backend, 2, seed=seed) for seed in range(40)))
        assert server.records.most_active <= 8
    assert all(set(texts(drawn)) <= set(SCRIPT) and len(drawn) == 2 for drawn in results)
    assert len({record.fault for record in server.records.all()} - {None}) >= 5
    assert not others()


async def test_a_limiter_holds_for_requests_and_is_shared_by_backends(model: str) -> None:
    limiter = Limiter(2)
    with FakeServer(ScriptedModel(SCRIPT, delay=0.02)) as server:
        async with (
            at(server, model, max_concurrency=limiter) as one,
            at(server, model, max_concurrency=limiter) as two,
        ):
            await asyncio.gather(*(draws(backend, 1) for backend in (one, two) * 5))
        assert server.records.most_active == 2
    assert limiter.active == 0


async def test_a_prompt_that_is_too_long_is_said_so(server: FakeServer, model: str) -> None:
    async with at(server, model) as backend:
        state = await backend.begin("word " * 5000, max_tokens=4, params=PLAIN)
        with pytest.raises(ContextLengthError, match="maximum context length"):
            await backend.rollout([state], 1, seed=0)


async def test_a_wrong_key_is_said_and_never_shown(
    server: FakeServer, model: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = "sk-wrong-9876543210-wrong"
    async with at(server, model, api_key=wrong, retries=AT_ONCE) as backend:
        with pytest.raises(EndpointError, match="check the key") as caught:
            await draws(backend, 1)
        assert caught.value.status == 401
        shown = [repr(backend), backend.name, str(caught.value), repr(caught.value), caplog.text, *capfd.readouterr()]
    assert server.records.total == 1
    assert all(wrong not in text for text in shown)
    assert KEY not in caplog.text


async def test_a_missing_key_is_said_at_the_first_request(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    async with LiteLLMBackend("openai/scripted", api_base=server.base_url, retries=AT_ONCE) as backend:
        with pytest.raises(EndpointError, match="give the key as api_key") as caught:
            await draws(backend, 1)
        assert "gave up" not in str(caught.value)


async def test_the_key_may_come_from_the_providers_variable(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    async with LiteLLMBackend("openai/scripted", api_base=server.base_url, retries=ONCE) as backend:
        assert len(await draws(backend, 1)) == 1


# Cancelling and closing


async def test_a_cancelled_call_is_cancelled_at_the_server(server: FakeServer, model: str) -> None:
    server.faults = FaultPlan.always("hang")
    async with at(server, model) as backend:
        call = asyncio.create_task(draws(backend, 2))
        await until_busy(server)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until_idle(server)
        assert server.records.aborted == 1
        assert not others()
        server.faults = None
        assert len(await draws(backend, 2)) == 2, "its connections can be used again"


async def test_a_call_may_be_cancelled_at_any_moment(server: FakeServer, model: str) -> None:
    limiter = Limiter(1)
    async with at(server, model, max_concurrency=limiter) as backend:
        await draws(backend, 1)
        for turns in range(40):
            call = asyncio.create_task(draws(backend, 1))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            assert limiter.active == 0
        assert len(await draws(backend, 1)) == 1
    assert not others()
    gc.collect()  # A coroutine that litellm's thread returned, and that nobody awaited, would be told of now.


async def test_a_call_that_fails_while_it_is_cancelled_is_no_matter_for_asyncios_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun = asyncio.Event()

    async def stubborn(**arguments: Any) -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("the connection was in an odd state") from None

    monkeypatch.setattr(litellm, "acompletion", stubborn)
    async with LiteLLMBackend("openai/x") as backend:
        call = asyncio.create_task(draws(backend, 1))
        await begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    del call
    gc.collect()
    assert not caplog.records


async def test_closing_ends_requests_under_way(server: FakeServer, model: str) -> None:
    server.faults = FaultPlan.always("hang")
    backend = at(server, model, retries=AT_ONCE)
    calls = [asyncio.create_task(draws(backend, 1)) for _ in range(3)]
    await until_busy(server, 3)
    await backend.aclose()
    for call in calls:
        with pytest.raises(BackendClosedError, match="was closed during"):
            await call
    await until_idle(server)
    assert server.records.aborted == server.records.total == 3
    assert not others()
    with pytest.raises(BackendClosedError):
        await backend.begin("2 + 2?", max_tokens=4, params=PLAIN)


async def test_closing_one_backend_leaves_others_and_litellm_itself_alone(server: FakeServer, model: str) -> None:
    one, two = at(server, model), at(server, model)
    for backend in (one, two):
        await draws(backend, 1)
    arguments: Any = {"model": model, "api_base": server.base_url, "api_key": KEY, "timeout": 300.0}
    messages = [{"role": "user", "content": "2 + 2?"}]
    server.faults = FaultPlan.always(Fault(kind="slow", delay=0.3))
    drawing = asyncio.create_task(draws(two, 1))
    asking = asyncio.create_task(
        litellm.acompletion(messages=messages, max_retries=0, num_retries=0, max_tokens=9, **arguments)
    )
    await until_busy(server, 2)
    await one.aclose()
    assert texts(await drawing)[0] in SCRIPT
    assert (await asking).choices[0].message.content in SCRIPT
    server.faults = None
    assert len(await draws(two, 1)) == 1
    await two.aclose()
    await litellm.close_litellm_async_clients()
    await litellm_workers_end()


async def test_requests_that_waited_when_the_backend_was_closed_are_not_sent(server: FakeServer) -> None:
    server.faults = FaultPlan.always("hang")
    backend = at(server, max_concurrency=1)
    calls = [asyncio.create_task(draws(backend, 1)) for _ in range(3)]
    await until_busy(server)
    await backend.aclose()
    for call in calls:
        with pytest.raises(BackendClosedError):
            await call
    assert server.records.total == 1


async def test_a_call_that_is_cancelled_while_its_backend_is_closed_counts_as_cancelled(server: FakeServer) -> None:
    server.faults = FaultPlan.always("hang")
    backend = at(server)
    call = asyncio.create_task(draws(backend, 1))
    await until_busy(server)
    call.cancel()
    await backend.aclose()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_closing_leaves_a_session_that_the_user_gave_to_litellm_open(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with httpx.AsyncClient() as session:
        monkeypatch.setattr(litellm, "aclient_session", session)
        async with at(server) as backend:
            await draws(backend, 1)
        assert not session.is_closed


async def litellm_workers_end() -> None:
    """End the tasks that litellm keeps in the background for calls that are not a backend's."""
    for task in others():
        task.cancel()
    await asyncio.gather(*others(), return_exceptions=True)


async def test_nothing_of_litellm_is_left_in_the_background(server: FakeServer, model: str) -> None:
    seen: list[Any] = []
    litellm.success_callback.append(lambda *told: seen.append(told))
    try:
        async with at(server, model) as backend:
            await draws(backend, 3)
    finally:
        litellm.success_callback.clear()
    assert not others()
    assert not seen


async def test_a_cache_of_the_users_gives_no_draws(server: FakeServer) -> None:
    litellm.cache = litellm.Cache(type="local")
    try:
        async with at(server) as backend:
            for _ in range(3):
                await draws(backend, 1)
    finally:
        litellm.cache = None
    assert server.records.total == 3


def test_one_backend_serves_several_event_loops_one_after_the_other(server: FakeServer, model: str) -> None:
    backend = at(server, model)
    for _ in range(3):
        assert len(asyncio.run(draws(backend, 2))) == 2
        gc.collect()  # Connections left open would be told of now.
    asyncio.run(backend.aclose())
    with pytest.raises(BackendClosedError):
        asyncio.run(draws(backend, 1))


# Names, runs, the whole process


async def test_it_is_loaded_by_name(server: FakeServer) -> None:
    async with backends.load("litellm/openai/scripted", api_base=server.base_url, api_key=KEY) as backend:
        assert isinstance(backend, LiteLLMBackend)
        assert backend.name == "litellm/openai/scripted"
        assert len(await draws(backend, 2)) == 2
    with pytest.raises(BackendError, match="takes no option 'api_kye'; allowed: api_base, api_key, extra"):
        backends.load("litellm/openai/scripted", api_kye=KEY)
    with pytest.raises(UnknownModelError, match="no provider for 'nowhere/x'"):
        await backends.connect("litellm/nowhere/x")


async def test_a_run_of_one_step_votes_and_one_of_several_is_refused(model: str) -> None:
    script = ScriptedModel({"it is 4 #### 4": 8.0, "it is 5 #### 5": 1.0, "no": 1.0})
    with FakeServer(script, api_key=KEY) as server:
        await one_step(at(server, model))


async def one_step(backend: LiteLLMBackend) -> None:
    async with backend:
        with pytest.raises(CapabilityError, match="only num_steps=1 is possible"):
            ETS(backend, "self_consistency", num_steps=4, num_candidates=8, max_tokens=20)
        ets = ETS(backend, "self_consistency", num_steps=1, num_candidates=16, kl_coef=0.01, max_tokens=20, seed=1)
        result = await ets.complete("2 + 2?")
        assert result.text == "it is 4 #### 4"
        assert (await ets.complete("2 + 2?")).text == result.text
    assert not others()


@pytest.mark.parametrize("version", ["1.82.7", "1.82.8"])
def test_malicious_releases_are_not_imported(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    monkeypatch.delitem(sys.modules, "litellm")
    with pytest.raises(BackendError, match=f"litellm {version} is a malicious release"):
        litellm_client._imported()
    assert "litellm" not in sys.modules


PROGRAM = """
    import asyncio, gc, os, sys, warnings

    addresses = []

    def watch(event, arguments):
        if event in ("socket.connect", "socket.getaddrinfo"):
            addresses.append(str(arguments))

    sys.addaudithook(watch)
    import dotenv
    dotenv.load_dotenv = lambda *told, **more: sys.exit("an .env file was looked for")
    import backends
    assert "litellm" not in sys.modules, "importing the package must not import litellm"
    before = dict(os.environ)
    backend = backends.load(f"litellm/{sys.argv[2]}", api_base=sys.argv[1], api_key=sys.argv[3])
    other = backends.load(f"litellm/{sys.argv[2]}", api_base=sys.argv[1], api_key=sys.argv[3])
    assert "litellm" in sys.modules
    assert dict(os.environ) == before, "the environment is as it was"
    assert not addresses, addresses

    async def draw(backend):
        state = await backend.begin("2 + 2?", max_tokens=20, params=backends.SamplingParams())
        return await backend.rollout([state], 3, seed=1)

    async def closed():
        async with other:
            await draw(other)

    for _ in range(2):
        asyncio.run(draw(backend))  # Never closed; its connections end with the loop.
    asyncio.run(closed())
    gc.collect()
    assert all("127.0.0.1" in address for address in addresses), addresses
    print("done")
"""
# Slow steps of the event loop are told on stderr in development mode, by asyncio's logger.
QUIET = "import logging; logging.getLogger('asyncio').setLevel(logging.ERROR)"


def test_a_program_reads_no_env_file_fetches_nothing_and_ends_without_a_warning(
    server: FakeServer, model: str, tmp_path: Any
) -> None:
    program = tmp_path / "program.py"
    program.write_text(QUIET + "\n" + textwrap.dedent(PROGRAM))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LITELLM_")}
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", str(program), server.base_url, model, KEY],
        env=environment | {"PYTHONPATH": os.getcwd()},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
