"""The tool in this process, over the SDK's client: what it lists, answers and refuses."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import anyio
import jsonschema
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult

import rewards
from backends import Completion, ContextLengthError, EndpointError, Prompt, State
from backends.scripted import ScriptedBackend
from ets_agent import ETSConfig, GuidedAnswer, GuidedReasoning, Policy, RequestError, RewardOffer, __version__
from ets_agent.mcp_server import _calls
from ets_agent.mcp_server._calls import CallEndedError, Calls
from ets_agent.mcp_server._progress import Note
from ets_agent.mcp_server._source import Awaited, Loading, Ready
from rewards import Reward, registry
from tests.mcp_server.conftest import MODES, QUESTION, SOON, Mode, in_one_task, in_process
from tests.mcp_server.watched_ets import RESPONSES
from tests.virtual_time import Overdue

TOOL = "guided_reasoning"


def said(result: CallToolResult) -> list[str]:
    return [block.text for block in result.content if block.type == "text"]


async def until(true: Any) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.01)


@pytest.fixture(params=MODES)
async def client(request: pytest.FixtureRequest, scripted: ScriptedBackend) -> Any:
    async with in_one_task(in_process(scripted, mode=request.param)) as client:
        yield client


async def test_the_server_says_who_it_is(client: Client) -> None:
    assert client.server_info is not None
    assert (client.server_info.name, client.server_info.version) == ("ets-agent", __version__)
    assert client.instructions is not None
    assert "self_consistency" in client.instructions


async def test_the_tool_is_listed_with_its_schemas(client: Client) -> None:
    (tool,) = (await client.list_tools()).tools
    reasoning = GuidedReasoning(ScriptedBackend(["yes"]))
    assert (tool.name, tool.description) == (reasoning.name, reasoning.description)
    assert tool.input_schema == reasoning.parameters(strict=False)
    assert tool.output_schema == GuidedAnswer.model_json_schema(mode="serialization")
    assert tool.annotations is not None
    assert tool.annotations.read_only_hint
    assert tool.annotations.idempotent_hint
    assert tool.annotations.open_world_hint is False
    jsonschema.Draft202012Validator.check_schema(tool.input_schema)
    jsonschema.validate(SOON, tool.input_schema)


async def test_a_call_gives_the_answer_as_text_and_as_an_object(client: Client) -> None:
    result = await client.call_tool(TOOL, SOON)
    assert not result.is_error
    (tool,) = (await client.list_tools()).tools
    jsonschema.validate(result.structured_content, tool.output_schema)
    answer = GuidedAnswer.model_validate(result.structured_content)
    text, remark = said(result)
    assert text == answer.answer
    assert remark == f"Confidence {answer.confidence:.2f}: the share of weight behind this answer, no probability."


async def test_progress_rises_to_the_total(client: Client) -> None:
    told: list[tuple[float, float | None, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, total, message))

    await client.call_tool(TOOL, {**SOON, "max_tokens": 12}, progress_callback=hear)
    await until(lambda: told and told[-1][0] >= 1)
    assert [total for _, total, _ in told] == [2] * len(told)
    assert all(before < after for (before, _, _), (after, _, _) in itertools.pairwise(told))
    assert told[0][2] == "step 1 of 2: drawing and judging candidates"


async def test_a_refused_request_says_what_is_allowed(client: Client) -> None:
    result = await client.call_tool(TOOL, {**SOON, "reward": {"name": "code_tests", "test": "assert True"}})
    assert result.is_error
    assert said(result) == [
        "reward 'code_tests' is not allowed here; allowed: self_consistency, json_schema, regex, similarity"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "question is missing"),
        ({"question": 7}, "question is 7"),
        ({**SOON, "effort": "heroic"}, "effort is 'heroic'"),
        ({**SOON, "reward": "no_such_reward"}, "reward 'no_such_reward' is not allowed here; allowed: self_cons"),
        ({**SOON, "reward": {"name": "regex"}}, "pattern"),
        ({**SOON, "reward": {"name": "regex", "pattern": "a", "timeout": 1}}, "no argument 'timeout' here"),
        ({**SOON, "timeout": 1e9}, "allowed: at most 120 seconds"),
        ({**SOON, "timeout": -1}, "timeout is -1"),
        ({**SOON, "max_tokens": 10**9}, "allowed: at most 1024"),
        (
            {**SOON, "colour": "red"},
            "there is no argument 'colour'; allowed: question, reward, effort, max_tokens, timeout",
        ),
        ({**SOON, "settings": {"num_candidates": 2}}, "there is no argument 'settings'"),
        ({"question": ""}, "empty"),
    ],
)
async def test_bad_arguments_are_a_result_that_says_so(client: Client, arguments: dict[str, Any], message: str) -> None:
    result = await client.call_tool(TOOL, arguments)
    assert result.is_error
    assert message in said(result)[0]


async def test_an_unknown_tool_and_an_unknown_resource_are_errors_of_the_protocol(client: Client) -> None:
    with pytest.raises(MCPError, match="there is no tool 'other'; allowed: guided_reasoning"):
        await client.call_tool("other", {})
    with pytest.raises(MCPError, match="there is no resource"):
        await client.read_resource("ets://secrets")


async def test_the_rewards_on_offer_are_a_resource(client: Client) -> None:
    (listed,) = (await client.list_resources()).resources
    (contents,) = (await client.read_resource(listed.uri)).contents
    offers = json.loads(contents.text)
    assert [offer["name"] for offer in offers] == ["self_consistency", "json_schema", "regex", "similarity"]
    assert offers[2]["arguments"]["pattern"]["type"] == "string"
    assert all(offer["description"] for offer in offers)


@pytest.mark.parametrize("mode", MODES)
async def test_a_cancelled_call_ends_its_run(mode: Mode) -> None:
    backend = ScriptedBackend(RESPONSES, delay=300)
    async with in_process(backend, mode=mode) as client:
        call = asyncio.create_task(client.call_tool(TOOL, QUESTION))
        await until(lambda: backend.active)
        call.cancel()
        await until(lambda: not backend.active)
        await asyncio.gather(call, return_exceptions=True)


class WaitsToClose(Reward):
    """A reward that takes an await to close, as those with processes do."""

    opened = closed = 0

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        type(self).opened += 1
        await asyncio.Event().wait()
        return []

    async def aclose(self) -> None:
        await asyncio.sleep(0.01)
        type(self).closed += 1


@pytest.mark.parametrize("mode", MODES)
async def test_a_cancelled_run_closes_its_reward(
    mode: Mode, scripted: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    rewards.register("waits_to_close")(WaitsToClose)
    WaitsToClose.opened = WaitsToClose.closed = 0
    async with in_process(scripted, mode=mode, policy=Policy(rewards=["waits_to_close"])) as client:
        call = asyncio.create_task(client.call_tool(TOOL, QUESTION))
        await until(lambda: WaitsToClose.opened)
        call.cancel()
        await until(lambda: WaitsToClose.closed)
        await asyncio.gather(call, return_exceptions=True)


async def test_a_cancelled_call_is_over_when_its_run_is() -> None:
    class SlowToLeave(ScriptedBackend):
        left = False

        async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
            try:
                return await super().extend(state, n, tokens=tokens, seed=seed)
            finally:
                await asyncio.sleep(0.05)
                self.left = True

    async def never() -> bool:
        return False

    async def tell(note: Note) -> None:
        pass

    backend = SlowToLeave(RESPONSES, delay=300)
    async with GuidedReasoning(backend) as reasoning, anyio.create_task_group() as group:
        calls = Calls(Ready(reasoning))
        group.start_soon(partial(calls.answer, QUESTION, tell=tell, gone=never))
        await until(lambda: backend.active)
        group.cancel_scope.cancel()
    assert backend.left


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward": "code_tests"}, "reward 'code_tests' is not allowed here"),
        ({"reward": {"name": "regex", "pattern": "("}}, "is no regular expression"),
        ({"timeout": 1e9}, "allowed: at most 120 seconds"),
    ],
)
async def test_what_is_not_allowed_is_refused_while_the_model_is_being_loaded(
    arguments: dict[str, Any], message: str
) -> None:
    async def never() -> bool:
        return False

    async def tell(note: Note) -> None:
        pass

    def load() -> GuidedReasoning:
        raise AssertionError("nothing is loaded here")

    loading = Loading(policy=Policy(), config=ETSConfig(), model="scripted", load=load)
    calls = Calls(Awaited(loading))  # It is never told to load, so it is never there.
    async with asyncio.timeout(30):
        with pytest.raises(RequestError, match=message):
            await calls.answer({**QUESTION, **arguments}, tell=tell, gone=never)


async def test_closing_tells_those_who_wait() -> None:
    async def never() -> bool:
        return False

    async def tell(note: Note) -> None:
        pass

    backend = ScriptedBackend(RESPONSES, delay=300)
    async with GuidedReasoning(backend) as reasoning:
        calls = Calls(Ready(reasoning))
        call = asyncio.create_task(calls.answer(QUESTION, tell=tell, gone=never))
        await until(lambda: backend.active)
        await calls.close()
        assert not backend.active
        with pytest.raises(CallEndedError, match="the server is shutting down"):
            await call


@pytest.mark.parametrize("mode", MODES)
async def test_a_long_step_is_filled_with_signs_of_life(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_calls, "HEARTBEAT", 0.0)
    monkeypatch.setattr(_calls, "_LOOK", 0.01)
    told: list[float] = []
    messages: list[str | None] = []
    heard = asyncio.Event()

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append(progress)
        messages.append(message)
        if len(told) > 10:
            heard.set()

    async with in_process(ScriptedBackend(RESPONSES, delay=300), mode=mode) as client:
        call = asyncio.create_task(client.call_tool(TOOL, QUESTION, progress_callback=hear))
        await asyncio.wait_for(heard.wait(), 30)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert all(before < after for before, after in itertools.pairwise(told))
    beat = re.compile(r"step 1 of 4: drawing and judging candidates \(\d+ s\)")
    assert any(beat.fullmatch(message or "") for message in messages)


async def test_a_caller_without_a_place_is_kept_alive_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_calls, "HEARTBEAT", 0.0)
    monkeypatch.setattr(_calls, "_LOOK", 0.01)
    heard: asyncio.Queue[str | None] = asyncio.Queue()

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.put_nowait(message)

    backend = ScriptedBackend(RESPONSES, delay=300)
    async with in_process(backend, max_concurrency=1) as client:
        first = asyncio.create_task(client.call_tool(TOOL, QUESTION))
        await until(lambda: backend.active)
        second = asyncio.create_task(client.call_tool(TOOL, QUESTION, progress_callback=hear))
        assert re.fullmatch(r"waiting to begin \(\d+ s\)", await asyncio.wait_for(heard.get(), 30) or "")
        for call in (first, second):
            call.cancel()
        await asyncio.gather(first, second, return_exceptions=True)


@pytest.mark.parametrize("mode", MODES)
async def test_a_slow_listener_does_not_hold_up_the_deadline(mode: Mode) -> None:
    released = asyncio.Event()

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        await released.wait()

    backend = Overdue(RESPONSES, seconds=10)
    async with in_process(backend, mode=mode) as client:
        call = asyncio.create_task(client.call_tool(TOOL, {**QUESTION, "timeout": 9}, progress_callback=hear))
        await until(lambda: backend.calls)
        await until(lambda: not backend.active)  # Ended by its deadline, while nobody listens.
        released.set()
        result = await call
    assert result.structured_content is not None
    assert result.structured_content["finish_reason"] == "timeout"


async def test_a_call_beyond_the_queue_is_told_to_come_back() -> None:
    backend = ScriptedBackend(RESPONSES, delay=300)
    async with in_process(backend, max_concurrency=1, max_queue=0) as client:
        first = asyncio.create_task(client.call_tool(TOOL, QUESTION))
        await until(lambda: backend.active)
        result = await client.call_tool(TOOL, QUESTION)
        assert result.is_error
        assert said(result)[0].startswith("1 calls are under way and 0 wait already")
        assert "try again later" in said(result)[0]
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


class Failing(ScriptedBackend):
    def __init__(self, error: Exception) -> None:
        super().__init__(RESPONSES)
        self._error = error

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        raise self._error


async def test_a_failing_model_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with in_process(Failing(EndpointError("the server at 10.0.0.1 is down"))) as client:
        result = await client.call_tool(TOOL, SOON)
    assert result.is_error
    assert said(result) == ["the model failed: the server at 10.0.0.1 is down"]
    assert "EndpointError" in caplog.text


async def test_a_prompt_that_is_too_long_is_the_callers_mistake() -> None:
    async with in_process(Failing(ContextLengthError("the prompt has 9 tokens too many"))) as client:
        result = await client.call_tool(TOOL, SOON)
    assert said(result) == ["the prompt has 9 tokens too many"]


async def test_a_bug_is_logged_and_tells_the_caller_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    async with in_process(Failing(KeyError("a secret"))) as client:
        result = await client.call_tool(TOOL, SOON)
    assert result.is_error
    assert "secret" not in said(result)[0]
    assert "a secret" in caplog.text


class Hopeless(Reward):
    pointwise = True

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        return [-math.inf for _ in completions]


@pytest.mark.parametrize("mode", MODES)
async def test_a_reward_of_minus_infinity_fits_the_schema(mode: Mode, scripted: ScriptedBackend) -> None:
    policy = Policy(rewards=[RewardOffer(name="hopeless", reward=Hopeless())])
    async with in_process(scripted, mode=mode, policy=policy) as client:
        result = await client.call_tool(TOOL, SOON)  # The client checks what it gets against the schema.
    assert result.structured_content is not None
    assert result.structured_content["reward"] == "-Infinity"


async def test_a_search_that_was_cut_short_says_so() -> None:
    async with in_process(Overdue(RESPONSES, at=3, seconds=10)) as client:
        result = await client.call_tool(TOOL, {**QUESTION, "max_tokens": 8, "timeout": 9})
    assert result.structured_content is not None
    assert result.structured_content["cut_short"]
    text, remark = said(result)
    assert text
    assert remark == (
        "Nothing was weighed, so there is no confidence. The search was cut short by its time limit; "
        "this is the best answer so far."
    )


async def test_no_answer_at_all_says_why() -> None:
    backend = ScriptedBackend(RESPONSES, delay=300)
    async with in_process(backend, max_concurrency=1) as client:
        first = asyncio.create_task(client.call_tool(TOOL, QUESTION))
        await until(lambda: backend.active)
        result = await client.call_tool(TOOL, {**QUESTION, "timeout": 0.1})
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    assert not result.is_error
    assert said(result)[0] == "There is no answer: all places were taken until the time was over."
