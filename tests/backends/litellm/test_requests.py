"""Models through litellm: what is asked, what providers take, what is drawn."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any

import pytest
from pydantic import SecretStr

from backends import (
    BackendError,
    CapabilityError,
    Completion,
    EndpointError,
    PromptError,
    SamplingParams,
    UnknownModelError,
)
from backends.endpoints.litellm_module import litellm
from backends.litellm import LiteLLMBackend
from backends.retries import RetryPolicy
from backends.service import Service
from tests.backends.conformance import bad_requests_are_refused, closing_twice_is_harmless
from tests.fake_server import FakeServer, FaultPlan, ScriptedModel

from .common import AT_ONCE, CONFIDENT, KEY, MODELS, PLAIN, SCRIPT, Stub, at, draws, texts

# litellm ignores this itself where it is imported; pytest sets filters anew for each test.
pytestmark = pytest.mark.filterwarnings("ignore:.*`ReadOnly` qualifier:UserWarning")


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


async def test_half_a_character_in_a_prompt_is_the_prompts_fault(server: FakeServer, model: str) -> None:
    prompts: list[Any] = ["What \ud83d?", [{"role": "user", "content": "What \ud83d?"}]]
    async with at(server, model) as backend:
        for prompt in prompts:
            with pytest.raises(PromptError, match="half of a surrogate pair"):
                await backend.begin(prompt, max_tokens=8, params=PLAIN)
    assert server.records.total == 0


async def test_greedy_answers_are_all_the_same_so_one_is_asked_for(server: FakeServer, model: str) -> None:
    async with at(server, model) as backend:
        drawn = await draws(backend, 4, params=SamplingParams(temperature=0.0))
    assert texts(drawn) == ["it is 4 #### 4"] * 4
    assert "n" not in server.records.all()[0].body
    assert server.records.total == 1


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
    too_many = [{"message": {"content": "yes"}, "finish_reason": "stop"}] * 2
    stub.outcome = litellm.ModelResponse(choices=too_many)
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
        ("hosted_vllm/m", SamplingParams(temperature=0.005), "allowed: 0, or at least 0.01"),
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
        ({"api_base": "me:hidden@host/v1"}, "the address 'host/v1' is no http"),
        ({"api_base": "http://256.1.1.1/v1"}, "no http"),
        ({"api_base": 5}, "the address is 5"),
        ({"timeout": "3"}, "timeout is '3'"),
        ({"retries": 3}, "retries is 3"),
        ({"api_key": 5}, "api_key is of type int"),
        ({"model": None}, "the model is None"),
        ({"extra": ["a"]}, "extra is a list"),
        ({"api_base": "http://host/v1?key=hidden"}, "has a query"),
        ({"extra": {"temperature": 0.1}}, "must not hold 'temperature'"),
        ({"extra": {"fallbacks": ["other"]}}, "must not hold 'fallbacks'"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BackendError, match=said) as caught:
        LiteLLMBackend(**{"model": "openai/x"} | options)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("model_alias_map", {"openai/x": "hidden"}), ("model_fallbacks", ["hidden"]), ("model_fallbacks", [])],
)
def test_settings_of_litellms_that_ask_another_model_are_refused(
    name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(litellm, name, value)
    with pytest.raises(BackendError, match=rf"litellm\.{name} is set") as caught:
        LiteLLMBackend("openai/x")
    assert "hidden" not in str(caught.value)


async def test_it_obeys_the_laws_that_need_no_steps(server: FakeServer) -> None:
    async with at(server) as backend:
        await bad_requests_are_refused(backend, "2 + 2?")
    await closing_twice_is_harmless(at(server), "2 + 2?")


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
    assert len(stub.calls) == (1 if params.greedy else 2)
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


def test_a_provider_whose_answers_cannot_be_limited_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litellm, "get_supported_openai_params", lambda **arguments: ["temperature"])
    with pytest.raises(CapabilityError, match="takes no max_tokens"):
        LiteLLMBackend("openai/x")


async def test_a_key_may_be_a_secret_string(server: FakeServer) -> None:
    async with at(server, api_key=SecretStr(KEY)) as backend:
        assert len(await draws(backend, 1)) == 1


async def test_litellms_own_mock_is_read_like_a_provider() -> None:
    async with LiteLLMBackend("anthropic/claude-sonnet-4-5", extra={"mock_response": "it is 4"}) as backend:
        drawn = await draws(backend, 3)
    assert [(c.text, c.finish_reason, c.logprob) for c in drawn] == [("it is 4", "stop", None)] * 3


@pytest.mark.parametrize(
    ("model", "provider", "name"),
    [
        ("anthropic/claude-sonnet-4-5", "anthropic", "claude-sonnet-4-5"),
        ("gpt-4o", "openai", "gpt-4o"),
        ("openrouter/qwen/qwen3-8b", "openrouter", "qwen/qwen3-8b"),
    ],
)
def test_provider_and_model_are_told_as_litellm_calls_them(model: str, provider: str, name: str) -> None:
    assert LiteLLMBackend(model).service == Service(provider=provider, model=name)
    served = LiteLLMBackend(model, api_base="http://localhost:8000/v1").service
    assert (served.provider, served.model, served.host, served.port) == (provider, name, "localhost", 8000)
