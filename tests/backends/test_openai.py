"""OpenAI-compatible servers: what is found out about them, what is sent, and what comes of answers of every kind."""

from __future__ import annotations

import asyncio
import logging
import math
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import backends
from backends import (
    BackendClosedError,
    BackendError,
    CapabilityError,
    Completion,
    ContextLengthError,
    EndpointError,
    PromptError,
    SamplingParams,
    UnknownModelError,
    UnreachableError,
)
from backends.openai import OpenAIBackend
from backends.retries import RetryPolicy
from ets_agent import ETS
from tests.fake_server import KINDS, FakeServer, Fault, FaultPlan, ScriptedModel, kept_port
from tests.hurry import hurried

SCRIPT = {"3 + 4 = 7 so #### 7": 3.0, "3 + 4 = 8 so #### 8": 1.0, "I think seven": 1.0}
QUESTION = "What is 3 + 4?"
CHAT = [{"role": "user", "content": QUESTION}]
QUICK = RetryPolicy(attempts=3, first_delay=0.001, longest_delay=0.002, deadline=60.0)
KEY = "sk-very-secret-0123456789"
PLAIN = SamplingParams()


def serve(script: Any = SCRIPT, **options: Any) -> FakeServer:
    return FakeServer(ScriptedModel(script), **options)


async def connect(server: FakeServer, **options: Any) -> OpenAIBackend:
    return await OpenAIBackend.connect("scripted", server.base_url, **({"retries": QUICK} | options))


def draws(server: FakeServer) -> list[dict[str, Any]]:
    """What was asked to be drawn after the connection was made."""
    return [record.body for record in server.records.all("/v1/completions")]


@pytest.mark.parametrize(
    ("options", "able"),
    [
        ({}, {"continue_prefix", "logprobs", "score", "full_support", "seed", "chat", "confidence"}),
        (
            {"processed_logprobs": True},
            {"continue_prefix", "logprobs", "score", "tempered_logprobs", "full_support", "seed", "chat", "confidence"},
        ),
        ({"profile": "completions"}, {"continue_prefix", "logprobs", "seed", "confidence"}),
        ({"profile": "completions_no_n"}, {"continue_prefix", "seed"}),
        ({"profile": "chat"}, {"logprobs", "seed", "chat", "confidence"}),
        ({"profile": "chat_no_n"}, {"logprobs", "seed", "chat", "confidence"}),
    ],
)
async def test_what_a_server_can_do_is_found_out(options: dict[str, Any], able: set[str]) -> None:
    with serve(**options) as server:
        async with await connect(server) as backend:
            known = backend.capabilities
    assert {name for name in known.__dataclass_fields__ if getattr(known, name)} == able


async def test_finding_out_takes_a_few_small_requests() -> None:
    with serve() as server:
        async with await connect(server):
            pass
        assert server.records.total <= 10
        assert sum(body.get("max_tokens", 0) * body.get("n", 1) for body in draws(server)) <= 64


async def test_a_way_to_ask_can_be_chosen() -> None:
    with serve() as server:
        async with await connect(server, api="chat") as backend:
            assert not backend.capabilities.continue_prefix
        with pytest.raises(BackendError, match="api is 'smoke'; allowed: auto, tokens, completions, chat"):
            await connect(server, api="smoke")
    with serve(profile="chat") as server, pytest.raises(BackendError, match="no requests by tokens for the model"):
        await connect(server, api="tokens")


async def test_draws_say_everything_that_a_server_may_have_other_defaults_for() -> None:
    with serve() as server:
        async with await connect(server) as backend:
            asked = len(draws(server))
            start = await backend.begin(QUESTION, max_tokens=8, params=SamplingParams(temperature=0.7, stop=("so",)))
            await backend.rollout([start, start], 3, seed=5)
        first, second = draws(server)[asked:]
    assert {
        name: first[name]
        for name in ("n", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop")
    } == {
        "n": 3,
        "max_tokens": 8,
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop": ["so"],
    }
    assert first["seed"] != second["seed"], "every request has a seed of its own"
    assert 0 <= first["seed"] < 2**53
    assert all(isinstance(token, int) for token in first["prompt"])
    assert "logprobs" not in first, "at this temperature they would be those of another distribution"


async def test_log_probabilities_are_sent_only_where_somebody_looks_at_them() -> None:
    with serve() as server:
        async with await connect(server) as backend:
            for wanted in (True, False):
                start = await backend.begin(QUESTION, max_tokens=8, params=SamplingParams(logprobs=wanted))
                ((completion,),) = await backend.rollout([start], 1, seed=5)
                assert ("logprobs" in draws(server)[-1]) == wanted
                assert (completion.logprob is not None) == wanted


async def test_a_server_without_n_is_asked_once_for_each_row() -> None:
    with serve(profile="completions_no_n") as server:
        async with await connect(server) as backend:
            asked = len(draws(server))
            start = await backend.begin(QUESTION, max_tokens=20, params=PLAIN)
            (rows,) = await backend.rollout([start], 6, seed=5)
        bodies = draws(server)[asked:]
    assert len(bodies) == 6
    assert all("n" not in body for body in bodies)
    assert len({body["seed"] for body in bodies}) == 6
    assert len(rows) == 6
    assert {row.text for row in rows} <= set(SCRIPT)
    assert all(0 < row.num_tokens <= 20 for row in rows)


async def test_more_rows_than_a_request_may_have_take_several() -> None:
    with serve() as server:
        async with await connect(server) as backend:
            asked = len(draws(server))
            start = await backend.begin(QUESTION, max_tokens=20, params=PLAIN)
            (many,) = await backend.rollout([start], 300, seed=5)
            (few,) = await backend.rollout([start], 200, seed=5)
        assert sorted(body["n"] for body in draws(server)[asked:]) == [44, 72, 128, 128, 128]
    assert many[:200] == few


@pytest.mark.parametrize("profile", ["vllm", "completions_no_n"])
@pytest.mark.parametrize("api", ["auto", "completions", "chat"])
async def test_greedy_rows_are_drawn_once_however_a_server_is_asked(profile: Any, api: Any) -> None:
    if (profile, api) == ("completions_no_n", "chat"):
        return
    with serve(profile=profile, processed_logprobs=True) as server:
        async with await connect(server, api=api) as backend:
            start = await backend.begin(QUESTION, max_tokens=20, params=SamplingParams(temperature=0.0))
            asked = server.records.total
            (rows,) = await backend.rollout([start], 5, seed=1)
            states = await backend.extend(start, 4, tokens=20, seed=1)
        assert [record.body.get("n", 1) for record in server.records.all()[-2:]] == [1, 1]
        assert server.records.total == asked + 2
    logprob = None if profile != "vllm" else 0.0
    assert [(row.text, row.logprob) for row in rows] == [("3 + 4 = 7 so #### 7", logprob)] * 5
    assert [state.text for state in states] == ["3 + 4 = 7 so #### 7"] * 4


@pytest.mark.parametrize(
    ("options", "params", "message"),
    [
        ({}, SamplingParams(temperature=0.005), "allowed: 0, or at least 0.01"),
        ({"profile": "completions"}, SamplingParams(temperature=0.005), "allowed: 0, or at least 0.01"),
        ({"profile": "chat"}, SamplingParams(temperature=0.005), "allowed: 0, or at least 0.01"),
        ({}, SamplingParams(temperature=2.5), "temperature is 2.5; this server allows at most 2"),
        ({"profile": "completions"}, SamplingParams(top_k=3), "no top_k, which is 3; allowed: 0"),
        ({"profile": "chat"}, SamplingParams(top_k=3), "no top_k"),
        ({"profile": "completions_no_n"}, SamplingParams(confidence=True), "gives no log-probabilities"),
        ({"processed_logprobs": True}, SamplingParams(confidence=True, temperature=0.5), "temperature 1"),
    ],
)
async def test_parameters_that_a_server_would_not_follow_are_refused(
    options: dict[str, Any], params: SamplingParams, message: str
) -> None:
    with serve(**options) as server:
        async with await connect(server) as backend:
            with pytest.raises(CapabilityError, match=message):
                await backend.begin(QUESTION, max_tokens=8, params=params)


async def test_confidence_is_of_the_models_own_distribution_at_any_temperature() -> None:
    with serve() as server:
        async with await connect(server) as backend:
            for temperature in (1.0, 2.0):
                params = SamplingParams(temperature=temperature, confidence=True)
                start = await backend.begin(QUESTION, max_tokens=20, params=params)
                successors = await backend.extend(start, 8, tokens=3, seed=2)
                for group in await backend.rollout(successors, 2, seed=3):
                    for row in group:
                        assert row.confidence is not None
                        assert row.confidence.entropy is None
                        assert row.confidence.logprob == pytest.approx(math.log(SCRIPT[row.text] / 5), abs=1e-6)
                        assert row.confidence.num_tokens == len(row.text.split()) + 1


async def test_only_a_chat_is_drawn_as_a_whole() -> None:
    with serve(profile="chat") as server:
        async with await connect(server) as backend:
            start = await backend.begin(QUESTION, max_tokens=20, params=PLAIN)
            with pytest.raises(CapabilityError, match="cannot continue a prefix"):
                await backend.extend(start, 2, tokens=4, seed=0)
            with pytest.raises(CapabilityError, match="only num_steps=1 is possible, not 4 steps"):
                ETS(backend, "self_consistency", num_steps=4)
            ets = ETS(backend, "self_consistency", num_steps=1, num_candidates=16, max_tokens=20)
            result = await ets.complete(CHAT, seed=1)
            assert result.answer == "7"
            assert result.usage.candidate_tokens > 0
        assert server.records.all("/v1/chat/completions")[-1].body["messages"] == CHAT


async def test_a_chat_is_refused_where_its_template_is_not_known() -> None:
    with serve(profile="completions") as server:
        async with await connect(server) as backend:
            with pytest.raises(PromptError, match="api='chat'"):
                await backend.begin(CHAT, max_tokens=8, params=PLAIN)


async def test_a_failed_request_costs_its_rollouts_and_nothing_else() -> None:
    with serve() as server:
        async with await connect(server) as backend:
            start = await backend.begin(QUESTION, max_tokens=20, params=PLAIN)
            states = [state for state in await backend.extend(start, 3, tokens=2, seed=0) if not state.finished]
            server.faults = FaultPlan.when(
                lambda asked: asked.generation and asked.body["seed"] % 2 == 0, "server_error"
            )
            rolled = await backend.rollout([states[0]] * 12, 2, seed=1)
            failed = [row for group in rolled for row in group if row.finish_reason == "error"]
            assert 0 < len(failed) < 24
            assert all(len({row.finish_reason == "error" for row in group}) == 1 for group in rolled)
            assert "/v1/completions [ets-" in str(failed[0].error)
            assert "gave up after 3 tries" in str(failed[0].error)
            server.faults = FaultPlan.always("server_error")
            with pytest.raises(EndpointError, match="500"):
                await backend.rollout(states, 2, seed=1)
            with pytest.raises(EndpointError, match="gave up after 3 tries"):
                await backend.extend(start, 2, tokens=2, seed=1)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"hang", "slow"}))
async def test_a_fault_that_passes_changes_nothing(kind: Any) -> None:
    with serve() as server:
        async with await connect(server) as backend:
            start = await backend.begin(QUESTION, max_tokens=20, params=PLAIN)
            expected = await backend.rollout([start], 4, seed=3)
            before = server.records.total
            server.faults = FaultPlan.first(kind, kind)
            assert await backend.rollout([start], 4, seed=3) == expected
            assert server.records.total - before == 3
            server.faults = FaultPlan.always(kind)
            with pytest.raises(EndpointError, match=r"\[ets-[0-9a-f]{16}"):
                await backend.rollout([start], 4, seed=3)
            assert server.records.total - before == 6


async def test_a_server_that_hangs_is_given_up_in_time() -> None:
    with serve() as server:
        async with await connect(server) as backend:
            start = await backend.begin(QUESTION, max_tokens=20, params=PLAIN)
            server.faults = FaultPlan.always("hang")
            with (
                hurried(backend, 0.05),
                pytest.raises(EndpointError, match=r"no answer within 0.05 s \(gave up after 3"),
            ):
                await backend.rollout([start], 1, seed=0)
            await asyncio.to_thread(server.wait_idle)


@pytest.mark.parametrize("as_date", [False, True])
async def test_a_server_is_not_asked_again_before_it_wants_to_be(as_date: bool) -> None:
    with serve() as server:
        async with await connect(server) as backend:
            start = await backend.begin(QUESTION, max_tokens=20, params=PLAIN)
            server.faults = FaultPlan.first(Fault(kind="rate_limit", retry_after=1.0, as_date=as_date))
            await backend.rollout([start], 1, seed=0)
        first, second = server.records.all("/v1/completions")[-2:]
        # A date counts whole seconds, so it may be nearly a second less.
        assert second.began - first.began > (0.02 if as_date else 0.99)


async def test_a_cancelled_call_ends_its_requests_on_the_server() -> None:
    with serve() as server:
        async with await connect(server) as backend:
            start = await backend.begin(QUESTION, max_tokens=20, params=PLAIN)
            server.faults = FaultPlan.always("hang")
            call = asyncio.create_task(backend.rollout([start] * 5, 2, seed=0))
            await asyncio.to_thread(server.records.wait, lambda records: records.active == 5)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await asyncio.to_thread(server.wait_idle)
            assert server.records.aborted == 5
            server.faults = None
            assert len(await backend.rollout([start] * 80, 1, seed=0)) == 80, "no place was lost"


async def test_requests_at_once_are_limited_and_backends_may_share_the_limit() -> None:
    from backends.limits import Limiter

    with serve() as server:
        limiter = Limiter(3)
        async with (
            await connect(server, max_concurrency=limiter) as one,
            await connect(server, max_concurrency=limiter) as other,
        ):
            starts = [await backend.begin(QUESTION, max_tokens=20, params=PLAIN) for backend in (one, other)]
            go_on = threading.Event()
            server.faults = FaultPlan.always(Fault(kind="slow", until=go_on))
            calls = [
                asyncio.create_task(backend.rollout([start] * 20, 1, seed=0))
                for backend, start in zip((one, other), starts, strict=True)
            ]
            await asyncio.to_thread(server.records.wait, lambda records: records.active == 3)
            go_on.set()
            await asyncio.gather(*calls)
        assert server.records.most_active == 3
        assert (limiter.active, limiter.waiting) == (0, 0)


async def test_responses_that_were_begun_earlier_go_first() -> None:
    from backends.limits import Limiter

    with serve() as server:
        limiter = Limiter(1)
        async with await connect(server, max_concurrency=limiter) as backend:
            early, late = [await backend.begin(QUESTION, max_tokens=most, params=PLAIN) for most in (20, 30)]
            (later,) = await backend.extend(late, 1, tokens=5, seed=0)
            known = len(draws(server))
            async with limiter:
                work = [
                    asyncio.create_task(call)
                    for call in (
                        backend.begin(QUESTION, max_tokens=20, params=PLAIN),
                        backend.rollout([later], 1, seed=0),
                        backend.extend(late, 1, tokens=6, seed=0),
                        backend.rollout(backend.adopt(early, [later]), 1, seed=0),
                        backend.extend(early, 1, tokens=7, seed=0),
                    )
                ]
                await asyncio.sleep(0)
            await asyncio.gather(*work)
        assert [body["max_tokens"] for body in draws(server)[known:]] == [15, 7, 25, 6]


async def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_drawn() -> None:
    with FakeServer(ScriptedModel(SCRIPT, max_model_len=100)) as server:
        async with await connect(server) as backend:
            asked = len(draws(server))
            with pytest.raises(ContextLengthError, match="allows 100 together"):
                await backend.begin(QUESTION, max_tokens=90, params=PLAIN)
            assert len(draws(server)) == asked


async def test_a_server_without_tokens_says_itself_that_a_prompt_does_not_fit() -> None:
    with FakeServer(ScriptedModel(SCRIPT, max_model_len=100), profile="completions") as server:
        async with await connect(server) as backend:
            start = await backend.begin("What is 3 + 4? " * 20, max_tokens=30, params=PLAIN)
            with pytest.raises(ContextLengthError, match="context length"):
                await backend.rollout([start], 1, seed=0)


async def test_states_of_a_local_model_are_continued_with_their_whole_text(tiny: Any) -> None:
    from tests.fake_server.local import LocalModel

    params = SamplingParams(temperature=1.2, stop=("####", "= 1"))
    with FakeServer(LocalModel(tiny)) as server:
        async with await OpenAIBackend.connect(tiny.name, server.base_url) as backend:
            assert backend.tokenization is not None
            assert backend.tokenization.difference(tiny.tokenization) is None
            local = await tiny.begin(CHAT, max_tokens=40, params=params)
            start = await backend.begin(CHAT, max_tokens=40, params=params)
            drawn = await tiny.extend(local, 12, tokens=9, seed=4)
            adopted = backend.adopt(start, drawn)
            rolled = await backend.rollout(adopted, 2, seed=5)
            own = await backend.extend(next(state for state in adopted if not state.finished), 3, tokens=3, seed=6)
    assert any(state.finished for state in drawn)
    assert any(not state.finished for state in drawn)
    for state, group in zip(drawn, rolled, strict=True):
        for row in group:
            (expected,) = tiny.adopt(local, [replace(state, token_ids=state.token_ids + row.token_ids,
                                                     num_tokens=state.num_tokens + len(row.token_ids),
                                                     finish_reason=row.finish_reason)])  # fmt: skip
            assert row.text == expected.text
    assert all(state.num_tokens <= 12 and state.token_ids[:9] == own[0].token_ids[:9] for state in own)


async def test_states_of_one_server_are_continued_on_another() -> None:
    for profile in ("vllm", "completions"):
        with serve(profile=profile) as first, serve(profile=profile) as second:
            async with await connect(first) as one, await connect(second) as other:
                params = SamplingParams(stop=("= 8",))
                start = await one.begin(QUESTION, max_tokens=20, params=params)
                twin = await other.begin(QUESTION, max_tokens=20, params=params)
                states = await one.extend(start, 6, tokens=4, seed=1)
                expected = await one.rollout(states, 2, seed=2)
                assert await other.rollout(other.adopt(twin, states), 2, seed=2) == expected
                with pytest.raises(BackendError, match="does not continue"):
                    other.adopt(next(state for state in other.adopt(twin, states)), [twin])


async def test_tokens_that_a_server_does_not_know_are_impossible() -> None:
    with serve() as server:
        async with await connect(server) as backend:
            start = await backend.begin(QUESTION, max_tokens=20, params=PLAIN)
            ((good,),) = await backend.rollout([start], 1, seed=0)
            alien = Completion(text="", token_ids=(10**9,))
            impossible = Completion(text="", token_ids=(good.token_ids[0], good.token_ids[0]))
            (scores,) = await backend.score([start], [[good, alien, Completion(text=""), impossible]])
    assert scores == [pytest.approx(good.logprob), -math.inf, 0.0, -math.inf]


async def test_a_closed_backend_is_closed_for_requests_under_way_too() -> None:
    with serve() as server:
        backend = await connect(server)
        start = await backend.begin(QUESTION, max_tokens=20, params=PLAIN)
        server.faults = FaultPlan.always("hang")
        call = asyncio.create_task(backend.rollout([start], 1, seed=0))
        await asyncio.to_thread(server.records.wait, lambda records: records.active == 1)
        await backend.aclose()
        with pytest.raises(BackendClosedError):
            await call
        with pytest.raises(BackendClosedError):
            await backend.begin(QUESTION, max_tokens=20, params=PLAIN)


def test_one_backend_serves_several_event_loops_one_after_the_other() -> None:
    program = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import backends
from ets_agent import ETS
from tests.fake_server import FakeServer, ScriptedModel
with FakeServer(ScriptedModel({SCRIPT!r})) as server:
    ets = ETS(backends.load(f"vllm/scripted@{{server.base_url}}"), max_tokens=20)
    texts = {{ets.complete_sync("What is 3 + 4?", seed=1).text for _ in range(3)}}
    async def two():
        return {{(await ets.complete("What is 3 + 4?", seed=1)).text for _ in range(2)}}
    assert texts == asyncio.run(two()), texts
    print(len(texts), len(server.records.all("/v1/models")))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("1 1\n", "")


def everything_said(error: BaseException) -> list[str]:
    """All texts of an error and of those that it came from."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return [text for link in chain for text in (str(link), repr(link))]


async def test_keys_appear_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serve(api_key=KEY) as server:
        async with await backends.connect(f"openai/scripted@{server.base_url}", api_key=KEY, retries=QUICK) as backend:
            result = await ETS(backend, max_tokens=20).complete(QUESTION, seed=0)
            said = [repr(backend), backend.name, str(vars(backend)), result.model_dump_json(), repr(result)]
            server.faults = FaultPlan.always("server_error")
            with pytest.raises(EndpointError) as failed:
                await ETS(backend, max_tokens=20).complete(QUESTION, seed=0)
        server.faults = None
        with pytest.raises(EndpointError, match="401") as refused:
            await backends.connect(f"openai/scripted@{server.base_url}", api_key="another-" + KEY, retries=QUICK)
        address = server.base_url.replace("http://", "http://somebody:hunter2@")
        with pytest.raises(EndpointError, match="401") as unknown:
            await backends.connect(f"vllm/scripted@{address}", retries=QUICK)
        with pytest.raises(BackendError, match="only one can be sent"):
            await backends.connect(f"vllm/scripted@{address}", api_key=KEY)
    assert "check the key (environment variable OPENAI_API_KEY)" in str(refused.value)
    said += [text for caught in (failed, refused, unknown) for text in everything_said(caught.value)]
    said += [f"{record.getMessage()} {record.args}" for record in caplog.records]
    assert not [text for text in said if KEY in text or "hunter2" in text]


async def test_a_key_that_the_server_repeats_is_cut_out() -> None:
    with serve(profile="completions", api_key="another") as server, pytest.raises(EndpointError) as caught:
        await connect(server, api_key=KEY)
    assert KEY not in str(caught.value)


async def test_a_server_that_is_not_there_is_named() -> None:
    with kept_port() as port:
        address = f"http://127.0.0.1:{port}/v1"
        with pytest.raises(UnreachableError, match=f"GET {address}/models .*connection failed.*gave up after 3 tries"):
            await OpenAIBackend.connect("scripted", address, retries=QUICK)


async def test_a_model_that_is_not_there_is_told_with_those_that_are() -> None:
    with serve() as server, pytest.raises(BackendError, match="'nothing'; it has scripted"):
        await OpenAIBackend.connect("nothing", server.base_url, retries=QUICK)


async def test_an_address_without_the_api_is_told_apart_from_a_wrong_model() -> None:
    with serve() as server, pytest.raises(BackendError, match="neither completions nor chat"):
        await OpenAIBackend.connect("scripted", f"{server.url}/v7", retries=QUICK)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vllm/", "no model is called 'vllm/'"),
        ("vllm/@http://localhost/v1", "no model with an address"),
        ("vllm/m@http://", "no model with an address"),
        ("vllm/m@http://u:secret@:80/v1", "no model with an address"),
        ("vllm/m@http://localhost:port/v1", "no model with an address"),
        ("vllm/m@http://a/v1,ftp://b", "no model with an address"),
        ("vllm/m@http://a/v1?key=secret", "no model with an address"),
        ("vlmm/m@http://u:secret@localhost:8000/v1", "Allowed: tiny/qwen3"),
    ],
)
def test_names_that_are_none_are_refused_without_showing_secrets(name: str, message: str) -> None:
    with pytest.raises(UnknownModelError, match=message) as caught:
        backends.load(name)
    assert "secret" not in str(caught.value)


def test_options_that_do_not_exist_are_refused_before_anything_is_sent() -> None:
    with pytest.raises(
        BackendError,
        match="takes no option 'device'; allowed: api, api_key, connect_timeout, key_hint, max_con",
    ):
        backends.load("vllm/m@http://127.0.0.1:9/v1", device="cuda")
    with pytest.raises(BackendError, match="timeout is 0; allowed"):
        backends.load("vllm/m@http://127.0.0.1:9/v1", timeout=0)


async def test_environment_variables_are_those_of_the_sdks(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(api_key=KEY) as server:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        async with await backends.connect("openai/scripted") as backend:
            assert backend.name == "openai/scripted"
        with pytest.raises(EndpointError, match="VLLM_API_KEY"):  # OpenAI's key is sent to nobody else.
            await backends.connect(f"vllm/scripted@{server.base_url}", retries=QUICK)
        monkeypatch.setenv("VLLM_API_KEY", KEY)
        async with await backends.connect(f"vllm/scripted@{server.base_url}") as backend:
            assert backend.name == f"vllm/scripted@{server.base_url}"


async def test_several_addresses_make_a_pool() -> None:
    with serve() as one, serve() as other:
        name = f"vllm/scripted@{one.base_url},{other.base_url}"
        async with await backends.connect(name, retries=QUICK) as backend:
            await asyncio.gather(*(ETS(backend, max_tokens=20).complete(QUESTION, seed=seed) for seed in range(6)))
        assert min(len(draws(one)), len(draws(other))) > 5
