"""Models through litellm: what goes wrong, what is tried again, what is kept out of messages."""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from backends import (
    BackendError,
    CapabilityError,
    ContextLengthError,
    EndpointError,
    MissingExtraError,
    QueueFullError,
    UnreachableError,
)
from backends.endpoints.litellm_module import litellm
from backends.limits import Limited, Limiter
from backends.litellm import LiteLLMBackend
from backends.retries import RetryPolicy
from tests.fake_server import FakeServer, Fault, FaultPlan, Kind, ScriptedModel, kept_port
from tests.virtual_time import pass_time

from .common import AT_ONCE, KEY, ONCE, PLAIN, SCRIPT, Stub, at, draws, others, texts, until_busy, until_idle

# litellm ignores this itself where it is imported; pytest sets filters anew for each test.
pytestmark = pytest.mark.filterwarnings("ignore:.*`ReadOnly` qualifier:UserWarning")

SECRET = "hidden-by-its-place-only"


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
        object,
        lambda: "text",
        lambda: litellm.ModelResponse(choices=[]),
    ],
    ids=["nothing", "text", "no choices"],
)
async def test_answers_that_make_no_sense_are_asked_for_again(stub: Stub, answer: Callable[[], Any]) -> None:
    stub.outcome = answer()
    async with LiteLLMBackend("openai/x", retries=RetryPolicy(attempts=3, first_delay=0)) as backend:
        with pytest.raises(EndpointError, match="cannot be used"):
            await draws(backend, 1)
    assert len(stub.calls) == 3


async def test_an_answer_that_a_filter_has_ended_is_not_asked_for_again(stub: Stub) -> None:
    choice = {"message": {"content": "x"}, "finish_reason": "content_filter"}
    stub.outcome = litellm.ModelResponse(choices=[choice])
    async with LiteLLMBackend("openai/x", retries=RetryPolicy(attempts=3, first_delay=0)) as backend:
        with pytest.raises(EndpointError, match="'content_filter'"):
            await draws(backend, 1)
    assert len(stub.calls) == 1


async def test_an_answer_of_reasoning_alone_is_an_empty_one(stub: Stub) -> None:
    stub.outcome = litellm.ModelResponse(choices=[{"message": {"content": ""}, "finish_reason": "length"}])
    async with LiteLLMBackend("openai/x") as backend:
        start = await backend.begin("Why?", max_tokens=20, params=PLAIN)
        ((row,),) = await backend.rollout([start], 1, seed=0)
    assert (row.text, row.finish_reason, row.num_tokens) == ("", "length", 20)
    assert len(stub.calls) == 1


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


async def test_all_tries_together_take_twice_the_time_of_one_by_default(stub: Stub) -> None:
    stub.outcome = error("RateLimitError", response=response(429, **{"retry-after": "3"}))
    async with LiteLLMBackend("openai/x", timeout=1.0) as backend:
        with pytest.raises(EndpointError, match=r"a wait of 3 s, and the deadline is 2 s"):
            await draws(backend, 1)


@pytest.mark.parametrize(
    "extra",
    [
        {"extra_headers": {"x-gateway": SECRET}},
        {"headers": {"x-gateway": SECRET}},
        {"extra_headers": {"authorization": f"Bearer {SECRET}"}},
        {"default_headers": {"x-list": ["other", SECRET]}},
        {"vertex_credentials": {"type": "service", "inner": [{"signed_by": SECRET}]}},
        {"aws_credentials_of": {"user": SECRET}},
        {"extra_body": {"gateway": {"api_key": SECRET}}},
        {"tokens": [{"access_token": SECRET}]},
    ],
    ids=str,
)
async def test_secrets_within_extra_arguments_are_kept_out_of_messages(stub: Stub, extra: dict[str, Any]) -> None:
    stub.outcome = error("BadRequestError", f"refused: {SECRET}, said by gateway-of-somebody")
    async with LiteLLMBackend("openai/x", api_key=KEY, extra=extra, retries=ONCE) as backend:
        with pytest.raises(EndpointError, match=r"refused: \(key\), said by gateway-of-somebody") as caught:
            await draws(backend, 1)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


async def test_what_is_no_secret_among_extra_arguments_is_shown(stub: Stub) -> None:
    stub.outcome = error("BadRequestError", "refused: model-of-theirs in region-of-theirs")
    extra = {"extra_body": {"adapter": "model-of-theirs", "regions": ["region-of-theirs"]}}
    async with LiteLLMBackend("openai/x", api_key=KEY, extra=extra, retries=ONCE) as backend:
        with pytest.raises(EndpointError, match="refused: model-of-theirs in region-of-theirs"):
            await draws(backend, 1)


@pytest.mark.parametrize("key", ["sk-a\\b'c\"d-0123456789", "two  spaces-key-0123456"])
async def test_a_key_is_found_however_it_is_written(stub: Stub, key: str) -> None:
    stub.outcome = error("BadRequestError", f"refused: { ({'said': key}) }, {key}")
    async with LiteLLMBackend("openai/x", api_key=key, retries=ONCE) as backend:
        with pytest.raises(EndpointError, match=r"refused: .*\(key\).*, \(key\)") as caught:
            await draws(backend, 1)
    assert "0123456" not in str(caught.value)


async def test_what_litellm_logs_of_a_call_shows_no_key(
    server: FakeServer, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "LiteLLM")
    extra = {"extra_headers": {"X-Gateway": SECRET}}
    async with at(server, model, extra=extra) as backend:
        await draws(backend, 2)
        server.faults = FaultPlan.always("server_error")
        with pytest.raises(EndpointError):
            await draws(backend, 2)
    assert "X-Gateway" in caplog.text
    assert SECRET not in caplog.text
    assert KEY not in caplog.text


async def test_headers_that_litellm_itself_sends_are_kept_out_of_messages(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(litellm, "headers", {"x-gateway": SECRET})
    stub.outcome = error("BadRequestError", f"refused: {SECRET}")
    async with LiteLLMBackend("openai/x", api_key=KEY, retries=ONCE) as backend:
        with pytest.raises(EndpointError, match=r"refused: \(key\)"):
            await draws(backend, 1)


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
    async with at(server, model, timeout=600.0, retries=RetryPolicy(attempts=1, deadline=None)) as backend:
        call = asyncio.create_task(draws(backend, 2))
        await until_busy(server)
        pass_time(600.0)
        with pytest.raises(EndpointError, match="no answer within 600 s") as caught:
            await call
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
    async with at(server, model, timeout=600.0, retries=RetryPolicy(attempts=1, deadline=300.0)) as backend:
        call = asyncio.create_task(draws(backend, 2))
        await until_busy(server)
        pass_time(300.0)
        with pytest.raises(EndpointError, match="no answer within the deadline of 300 s"):
            await call
        await until_idle(server)
    assert not others()


async def test_a_dead_endpoint_is_a_failed_connection(model: str) -> None:
    with kept_port() as port:
        address = f"http://127.0.0.1:{port}/v1"
        async with LiteLLMBackend(model, api_base=address, api_key=KEY, retries=AT_ONCE) as backend:
            with pytest.raises(UnreachableError, match="gave up after 6 tries") as caught:
                await draws(backend, 1)
        assert caught.value.status is None


async def test_an_illegible_answer_is_no_failed_connection(server: FakeServer, model: str) -> None:
    server.faults = FaultPlan.always("malformed_json")
    async with at(server, model) as backend:
        with pytest.raises(EndpointError) as caught:
            await draws(backend, 1)
    assert not isinstance(caught.value, UnreachableError)


async def test_responses_that_were_begun_earlier_go_first(stub: Stub) -> None:
    limiter = Limiter(1)
    async with LiteLLMBackend("openai/m", api_key=KEY, max_concurrency=limiter) as backend:
        early, late = [await backend.begin("2 + 2?", max_tokens=most, params=PLAIN) for most in (20, 30)]
        async with limiter:
            work = [asyncio.create_task(backend.rollout([state], 1, seed=0)) for state in (late, early)]
            while limiter.waiting < 2:
                await asyncio.sleep(0)
        await asyncio.gather(*work)
    assert [call["max_tokens"] for call in stub.calls] == [20, 30]


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
    limiter, go_on = Limiter(2), threading.Event()
    with FakeServer(ScriptedModel(SCRIPT), faults=FaultPlan.always(Fault(kind="slow", until=go_on))) as server:
        async with (
            at(server, model, max_concurrency=limiter) as one,
            at(server, model, max_concurrency=limiter) as two,
        ):
            calls = [asyncio.create_task(draws(backend, 1)) for backend in (one, two) * 5]
            await until_busy(server, 2)
            async with asyncio.timeout(60):
                while limiter.waiting < 8:
                    await asyncio.sleep(0.001)
            go_on.set()
            await asyncio.gather(*calls)
        assert server.records.most_active == 2
    assert limiter.active == 0


async def test_a_full_queue_refuses_responses_before_they_are_begun_and_nothing_later(
    server: FakeServer, model: str
) -> None:
    limiter = Limiter(1, max_queue=0)
    async with at(server, model, max_concurrency=limiter) as backend:
        state = await backend.begin("a question", max_tokens=4, params=PLAIN)
        async with limiter:
            with pytest.raises(QueueFullError):
                await backend.begin("a question", max_tokens=4, params=PLAIN)
            drawing = asyncio.create_task(backend.rollout([state] * 3, 2, seed=0))
            for _ in range(9):
                await asyncio.sleep(0)
            assert limiter.waiting == 3
        assert [len(group) for group in await drawing] == [2, 2, 2]
        with pytest.raises(BackendError, match="the same limiter"):
            Limited(backend, limiter)


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
