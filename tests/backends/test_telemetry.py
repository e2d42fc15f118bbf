from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

import backends
from backends import (
    Backend,
    Completion,
    EndpointError,
    MissingExtraError,
    PromptError,
    SamplingParams,
    State,
    telemetry,
)
from backends.enumerable import EnumerableBackend
from backends.limits import Limited
from backends.metering import Metered
from backends.pool import Pool
from backends.scripted import ScriptedBackend
from backends.service import Service, service_of
from backends.telemetry import Traced
from backends.wrapper import BackendWrapper, StateNotes
from tests.fake_server import FakeServer, ScriptedModel

from .conformance import CHECKS, Check
from .test_conformance import SCRIPT

PLAIN = SamplingParams()


class Recorder:
    """A tracer provider with the spans that it was given."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    @property
    def last(self) -> dict[str, Any]:
        """Attributes of the span that ended last."""
        return dict(self.spans[-1].attributes or {})


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def traced(recorder: Recorder, inner: Backend | None = None, **options: Any) -> Traced:
    backend = inner if inner is not None else ScriptedBackend(["a b c"])
    return Traced(backend, tracer_provider=recorder.provider, **options)


class Failing(BackendWrapper):
    """Raises an error, or hangs where it has none."""

    def __init__(self, error: BaseException | None) -> None:
        super().__init__(ScriptedBackend(["a b c"]))
        self.error = error

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        if self.error is None:
            await asyncio.Event().wait()
        else:
            raise self.error
        raise AssertionError


async def test_beginning_tells_model_and_settings(recorder: Recorder) -> None:
    params = SamplingParams(temperature=0.7, top_p=0.9, top_k=20)
    await traced(recorder).begin("a question", max_tokens=10, params=params)
    (span,) = recorder.spans
    assert (span.name, span.kind, span.status.status_code) == ("begin scripted", SpanKind.CLIENT, StatusCode.UNSET)
    assert recorder.last == {
        "gen_ai.operation.name": "begin",
        "gen_ai.provider.name": "scripted",
        "gen_ai.request.model": "scripted",
        "gen_ai.request.max_tokens": 10,
        "gen_ai.request.temperature": 0.7,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 20.0,
        "ets.call": "begin",
    }


async def test_extending_tells_what_was_asked_for_and_drawn(recorder: Recorder) -> None:
    backend = traced(recorder, ScriptedBackend(["a", "a b c"]))
    start = await backend.begin("a question", max_tokens=10, params=PLAIN)
    states = await backend.extend(start, 8, tokens=2, seed=7)
    assert recorder.spans[-1].name == "text_completion scripted"
    assert recorder.spans[-1].kind == SpanKind.CLIENT
    assert recorder.last == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "scripted",
        "gen_ai.request.model": "scripted",
        "gen_ai.request.max_tokens": 2,
        "gen_ai.request.choice.count": 8,
        "gen_ai.request.seed": 7,
        "gen_ai.request.temperature": 1.0,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.usage.output_tokens": 16,
        "gen_ai.response.finish_reasons": tuple(state.finish_reason or "length" for state in states),
        "ets.call": "extend",
        "ets.states": 1,
    }
    assert set(recorder.last["gen_ai.response.finish_reasons"]) == {"stop", "length"}


async def test_rollouts_tell_the_longest_that_was_asked_for(recorder: Recorder) -> None:
    backend = traced(recorder)
    start = await backend.begin("a question", max_tokens=10, params=SamplingParams(temperature=0.5))
    (middle,) = await backend.extend(start, 1, tokens=1, seed=0)
    (final,) = await backend.extend(start, 1, tokens=4, seed=0)
    assert "gen_ai.request.choice.count" not in recorder.last
    await backend.rollout([final, middle], 2, seed=1)
    assert recorder.spans[-1].name == "text_completion scripted"
    assert recorder.last == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "scripted",
        "gen_ai.request.model": "scripted",
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.seed": 1,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.usage.output_tokens": 2 * 3,
        "gen_ai.response.finish_reasons": ("stop",) * 4,
        "ets.call": "rollout",
        "ets.states": 2,
    }
    await backend.rollout([middle, start, middle], 1, seed=1)
    assert recorder.last["gen_ai.request.max_tokens"] == 10
    await backend.rollout([final], 1, seed=1)
    assert "gen_ai.request.max_tokens" not in recorder.last


async def test_who_serves_a_model_is_told_apart_from_what_it_is_called(recorder: Recorder) -> None:
    with FakeServer(ScriptedModel(["a b c"])) as one, FakeServer(ScriptedModel(["a b c"]), profile="chat") as two:
        for server, provider in ((one, "vllm"), (two, "openai")):
            async with await backends.connect(f"vllm/scripted@{server.base_url}") as endpoint:
                await traced(recorder, Metered(endpoint)).begin("a question", max_tokens=4, params=PLAIN)
                port = urlsplit(server.base_url).port
                assert str(port) in endpoint.name
            assert recorder.spans[-1].name == "begin scripted"
            told = recorder.last
            assert (told["gen_ai.provider.name"], told["gen_ai.request.model"]) == (provider, "scripted")
            assert (told["server.address"], told["server.port"]) == ("127.0.0.1", port)


async def test_of_a_pool_is_told_what_its_members_have_in_common(recorder: Recorder) -> None:
    with FakeServer(ScriptedModel(["a b c"])) as one, FakeServer(ScriptedModel(["a b c"])) as two:
        async with await backends.connect(f"vllm/scripted@{one.base_url},{two.base_url}") as pool:
            await traced(recorder, Metered(pool)).begin("a question", max_tokens=4, params=PLAIN)
    assert recorder.spans[-1].name == "begin scripted"
    assert (recorder.last["gen_ai.provider.name"], recorder.last["gen_ai.request.model"]) == ("vllm", "scripted")
    assert not {"server.address", "server.port"} & recorder.last.keys()
    mixed = Pool([Limited(ScriptedBackend(["a"]), 1), EnumerableBackend.random(1, letters="ab")])
    assert service_of(mixed) == Service(provider="scripted + enumerable", model="scripted + enumerable-1")


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://localhost:8000/v1", "localhost", 8000),
        ("https://api.openai.com/v1", "api.openai.com", 443),
        ("http://[::1]/v1", "::1", 80),
    ],
)
def test_an_address_is_host_and_port(url: str, host: str, port: int) -> None:
    assert Service.at(url, provider="p", model="m") == Service(provider="p", model="m", host=host, port=port)


async def test_the_tokens_that_go_in_are_prompt_and_response_so_far_of_each_state(recorder: Recorder) -> None:
    with FakeServer(ScriptedModel(["a b c d"])) as server:
        async with await backends.connect(f"vllm/scripted@{server.base_url}") as endpoint:
            backend = traced(recorder, endpoint)
            start = await backend.begin("one two three", max_tokens=10, params=PLAIN)
            assert start.prompt_tokens is not None
            assert "gen_ai.usage.input_tokens" not in recorder.last
            (middle,) = await backend.extend(start, 1, tokens=2, seed=0)
            assert recorder.last["gen_ai.usage.input_tokens"] == start.prompt_tokens
            (final,) = await backend.extend(middle, 1, tokens=8, seed=0)
            assert recorder.last["gen_ai.usage.input_tokens"] == start.prompt_tokens + 2
            await backend.rollout([middle, final, start], 3, seed=0)
            assert recorder.last["gen_ai.usage.input_tokens"] == 2 * start.prompt_tokens + 2


async def test_scoring_tells_how_much_was_scored(recorder: Recorder) -> None:
    backend = traced(recorder)
    start = await backend.begin("a question", max_tokens=10, params=PLAIN)
    drawn = await backend.rollout([start, start], 3, seed=0)
    await backend.score([start, start], drawn)
    assert recorder.spans[-1].name == "score scripted"
    assert recorder.last == {
        "gen_ai.operation.name": "score",
        "gen_ai.provider.name": "scripted",
        "gen_ai.request.model": "scripted",
        "gen_ai.request.temperature": 1.0,
        "gen_ai.request.top_p": 1.0,
        "ets.call": "score",
        "ets.states": 2,
        "ets.completions": 6,
        "ets.usage.scoring_tokens": 24,
    }


async def test_settings_of_adopted_states_are_known(recorder: Recorder) -> None:
    backend = traced(recorder, EnumerableBackend.random(1, letters="abcd"))
    start = await backend.begin("a question", max_tokens=5, params=SamplingParams(temperature=1.5))
    drawn = await backend.inner.extend(start, 3, tokens=2, seed=0)
    await backend.rollout(backend.adopt(start, [state for state in drawn if not state.finished]), 1, seed=0)
    assert recorder.last["gen_ai.request.temperature"] == 1.5
    assert recorder.last["gen_ai.request.max_tokens"] == 3


async def test_of_states_from_elsewhere_no_settings_are_told(recorder: Recorder) -> None:
    backend = traced(recorder)
    start = await backend.inner.begin("a question", max_tokens=10, params=PLAIN)
    await backend.rollout([start], 1, seed=0)
    assert not {"gen_ai.request.temperature", "gen_ai.request.max_tokens"} & recorder.last.keys()
    assert recorder.last["gen_ai.usage.output_tokens"] == 4
    await backend.rollout([], 1, seed=0)
    assert recorder.last["ets.states"] == 0


async def test_seeds_that_no_exporter_can_send_are_told_as_text(recorder: Recorder) -> None:
    backend = traced(recorder)
    start = await backend.begin("a question", max_tokens=10, params=PLAIN)
    for seed, told in ((2**63 - 1, {"gen_ai.request.seed": 2**63 - 1}), (2**63, {"ets.seed": str(2**63)})):
        await backend.rollout([start], 1, seed=seed)
        assert {key: value for key, value in recorder.last.items() if key.endswith("seed")} == told


async def test_tokens_of_which_only_the_number_is_known_are_told(recorder: Recorder) -> None:
    class Text(BackendWrapper):
        async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
            groups = await super().rollout(states, n, seed=seed)
            return [[replace(one, token_ids=(), token_count=len(one.token_ids)) for one in group] for group in groups]

    backend = traced(recorder, Text(ScriptedBackend(["a b c"])))
    start = await backend.begin("a question", max_tokens=10, params=PLAIN)
    await backend.rollout([start], 1, seed=0)
    assert recorder.last["gen_ai.usage.output_tokens"] == 4
    assert recorder.last["gen_ai.response.finish_reasons"] == ("stop",)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EndpointError("POST: 503", status=503), "503"),
        (EndpointError("no connection"), "backends.errors.EndpointError"),
        (PromptError("secret words"), "backends.errors.PromptError"),
        (KeyError("secret words"), "KeyError"),
    ],
    ids=repr,
)
async def test_a_failed_call_is_marked_by_the_kind_of_its_error(
    recorder: Recorder, error: Exception, kind: str
) -> None:
    backend = traced(recorder, Failing(error))
    start = await backend.begin("a question", max_tokens=10, params=PLAIN)
    with pytest.raises(type(error)) as caught:
        await backend.rollout([start], 1, seed=0)
    assert caught.value is error
    span = recorder.spans[-1]
    assert recorder.last["error.type"] == kind
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, type(error).__name__)
    assert not span.events
    assert recorder.last["gen_ai.request.seed"] == 0
    assert "gen_ai.usage.output_tokens" not in recorder.last


async def test_a_cancelled_call_ends_its_span_as_such(recorder: Recorder) -> None:
    backend = traced(recorder, Failing(None))
    start = await backend.begin("a question", max_tokens=10, params=PLAIN)
    task = asyncio.create_task(backend.rollout([start], 1, seed=0))
    await asyncio.sleep(0)
    assert len(recorder.spans) == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert recorder.spans[-1].status.status_code == StatusCode.ERROR
    assert recorder.last["error.type"] == "asyncio.exceptions.CancelledError"


async def test_no_words_of_prompt_answer_or_error_are_in_a_span(recorder: Recorder) -> None:
    backend = traced(recorder, ScriptedBackend(["swordfish swordfish"]))
    start = await backend.begin("a swordfish", max_tokens=10, params=SamplingParams(stop=("swordfish!",)))
    states = await backend.extend(start, 2, tokens=1, seed=0)
    await backend.score(states, await backend.rollout(states, 2, seed=0))
    bad: Any = [{"role": "swordfish"}]
    with pytest.raises(PromptError, match="swordfish"):
        await backend.begin(bad, max_tokens=10, params=PLAIN)
    assert len(recorder.spans) == 5
    assert "swordfish" not in "".join(span.to_json() for span in recorder.spans)


async def test_spans_are_children_of_the_callers_and_parents_of_what_is_below(recorder: Recorder) -> None:
    backend = traced(recorder, traced(recorder))
    with recorder.provider.get_tracer("test").start_as_current_span("run"):
        await asyncio.gather(*(backend.begin("a question", max_tokens=10, params=PLAIN) for _ in range(3)))
    spans = {span.context.span_id: span for span in recorder.spans}
    depths = []
    for span in recorder.spans:
        depth = 0
        while span.parent is not None:
            span, depth = spans[span.parent.span_id], depth + 1
        depths.append(depth)
    assert sorted(depths) == [0, 1, 1, 1, 2, 2, 2]


async def test_the_provider_is_the_innermost_backend_unless_it_is_given(recorder: Recorder) -> None:
    inner = Metered(Limited(EnumerableBackend.random(1, letters="ab"), 1))
    await traced(recorder, inner).begin("a question", max_tokens=1, params=PLAIN)
    assert recorder.last["gen_ai.provider.name"] == "enumerable"
    await traced(recorder, inner, provider="openai").begin("a question", max_tokens=1, params=PLAIN)
    assert recorder.last["gen_ai.provider.name"] == "openai"


@pytest.mark.parametrize("law", CHECKS, ids=lambda law: law.__name__)
async def test_a_backend_that_is_recorded_obeys(law: Check, recorder: Recorder) -> None:
    await law(traced(recorder, ScriptedBackend(SCRIPT)), "a question")


@pytest.mark.parametrize("provider", [None, TracerProvider(ALWAYS_OFF, shutdown_on_exit=False)], ids=["none", "off"])
async def test_nothing_is_computed_for_spans_that_nobody_records(
    provider: TracerProvider | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> Any:
        raise AssertionError("computed for nobody")

    for function in ("_settings", "_error_type"):
        monkeypatch.setattr(telemetry, function, refuse)
    for method in ("_request", "_common"):
        monkeypatch.setattr(Traced, method, refuse)
    monkeypatch.setattr(StateNotes, "put", refuse)
    backend = Traced(ScriptedBackend(["a b c"]), tracer_provider=provider)
    start = await backend.begin("a question", max_tokens=10, params=PLAIN)
    states = await backend.extend(start, 2, tokens=1, seed=0)
    await backend.score(states, await backend.rollout(states, 2, seed=0))
    with pytest.raises(PromptError):
        await backend.begin("", max_tokens=10, params=PLAIN)


def test_importing_the_package_does_not_import_opentelemetry() -> None:
    program = (
        "import sys, backends, backends.telemetry, backends.wrapper\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.strip() == "[]"


def test_without_opentelemetry_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ets-agent\[telemetry\]'"):
        Traced(ScriptedBackend(["a"]))
