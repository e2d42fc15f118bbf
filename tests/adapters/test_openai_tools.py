"""Function calling with OpenAI's own client, and the dispatcher's messages."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from backends import BackendError
from backends.scripted import ScriptedBackend
from ets_agent import GuidedReasoning
from ets_agent.adapters.openai_tools import dispatch, dispatch_all, tool
from tests.adapters.chat_server import ChatServer
from tests.adapters.conftest import ARGUMENTS, REFUSAL, REFUSED, Asked, until_active
from tests.adapters.strict import check_tool

NAME = "guided_reasoning"


async def chat_loop(client: openai.AsyncOpenAI, reasoning: GuidedReasoning) -> str:
    """The agent loop of OpenAI's guide to function calling."""
    messages: list[Any] = [{"role": "user", "content": "How many apples?"}]
    while True:
        completion = await client.chat.completions.create(model="m", messages=messages, tools=[tool(reasoning)])  # type: ignore[list-item]
        message = completion.choices[0].message
        if not message.tool_calls:
            return message.content or ""
        messages += [message, *await dispatch_all(reasoning, message.tool_calls)]


async def responses_loop(client: openai.AsyncOpenAI, reasoning: GuidedReasoning) -> str:
    items: list[Any] = [{"role": "user", "content": "How many apples?"}]
    while True:
        response = await client.responses.create(model="m", input=items, tools=[tool(reasoning, "responses")])  # type: ignore[list-item]
        results = await dispatch_all(reasoning, response.output)
        if not results:
            return response.output_text
        items += [*response.output, *results]


def last_answer(messages: list[dict[str, Any]]) -> str:
    last = messages[-1]
    told = json.loads(last["content"] if "content" in last else last["output"])
    return f"They are {told['answer']} apples."


@pytest.mark.parametrize("loop", [chat_loop, responses_loop])
async def test_an_agent_loop_calls_the_tool_and_uses_what_it_says(
    loop: Any, server: ChatServer, reasoning: Asked
) -> None:
    server.script = [[(NAME, ARGUMENTS)], last_answer]
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="k") as client:
        assert await loop(client, reasoning) == "They are 42 apples."
    assert reasoning.asked == [ARGUMENTS]
    sent = server.requests[0]["tools"][0]
    check_tool(sent.get("function", sent))


@pytest.mark.parametrize("loop", [chat_loop, responses_loop])
async def test_a_refused_reward_comes_back_as_text_and_the_loop_goes_on(
    loop: Any, server: ChatServer, reasoning: Asked
) -> None:
    server.script = [[(NAME, REFUSED)], [(NAME, "{not JSON")], [("other", {})], [(NAME, ARGUMENTS)], last_answer]
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="k") as client:
        assert await loop(client, reasoning) == "They are 42 apples."
    said = json.dumps(server.requests[-1])
    for text in (REFUSAL, "the arguments are not valid JSON", "there is no tool 'other'; allowed: guided_reasoning"):
        assert text in said


@pytest.mark.parametrize("loop", [chat_loop, responses_loop])
async def test_all_calls_of_a_message_are_answered_in_order(loop: Any, server: ChatServer, reasoning: Asked) -> None:
    def count(messages: list[dict[str, Any]]) -> str:
        ids = [message.get("tool_call_id", message.get("call_id")) for message in messages[-3:]]
        contents = [message.get("content", message.get("output")) for message in messages[-3:]]
        return json.dumps([ids, ["error" in json.loads(content) for content in contents]])

    server.script = [[(NAME, ARGUMENTS), (NAME, REFUSED), (NAME, ARGUMENTS)], count]
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="k") as client:
        ids, failed = json.loads(await loop(client, reasoning))
    assert ids == ["call_0", "call_1", "call_2"]
    assert failed == [False, True, False]


def call(arguments: Any = ARGUMENTS, name: str = NAME) -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"type": "function_call", "call_id": "c1", "name": name, "arguments": text}


def chat_call(arguments: Any = ARGUMENTS, name: str = NAME) -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": text}}


async def test_calls_of_a_message_run_at_the_same_time(slow: Asked) -> None:
    task = asyncio.create_task(dispatch_all(slow, [call(), call(), call()]))
    await until_active(slow, 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.scripted.active == 0


async def test_cancelling_a_call_ends_its_run(slow: Asked) -> None:
    task = asyncio.create_task(dispatch(slow, chat_call()))
    await until_active(slow)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.scripted.active == 0
    assert slow.places.active == 0


async def test_objects_do_as_well_as_mappings(reasoning: Asked) -> None:
    text = json.dumps(ARGUMENTS)
    told = await dispatch(reasoning, SimpleNamespace(id="a", function=SimpleNamespace(name=NAME, arguments=text)))
    assert (told["role"], told["tool_call_id"]) == ("tool", "a")
    assert json.loads(told["content"])["answer"] == "42"
    item = SimpleNamespace(type="function_call", call_id="b", name=NAME, arguments=text)
    told = await dispatch(reasoning, item)
    assert (told["type"], told["call_id"]) == ("function_call_output", "b")
    assert json.loads(told["output"])["answer"] == "42"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("null", "the arguments are no object; allowed: an object with question, reward, effort, max_tokens, timeout"),
        ('["q"]', "the arguments are no object"),
        ("{}", "question is missing"),
        ({"question": None}, "question is missing"),
        ({"question": 3}, "question is 3: input should be a valid string"),
        ({"question": ""}, "all chat messages are empty"),
        ({"question": "q", "messages": []}, "there is no argument 'messages'; allowed: question, reward, effort"),
        ({"question": "q", "settings": {"num_candidates": 1}}, "there is no argument 'settings'"),
        ({"question": "q", "effort": "extreme"}, "effort is 'extreme': input should be 'low', 'medium' or 'high'"),
        ({"question": "q", "max_tokens": 10**9}, "max_tokens is 1000000000; allowed: at most 64"),
        ({"question": "q", "max_tokens": 10**400}, "max_tokens"),
        ('{"question": "q", "timeout": 1e999}', "timeout is inf: input should be a finite number"),
        ({"question": "q", "timeout": 1000}, "timeout is 1000; allowed: at most 120 seconds"),
        ({"question": "q", "timeout": 0}, "timeout is 0: input should be greater than 0"),
        ({"question": "q", "reward": ["self_consistency"]}, "reward"),
        ({"question": "q", "reward": {"name": "json_schema", "schema": "{"}}, "schema of reward 'json_schema' is not"),
        ({"question": "q", "reward": {"name": "regex"}}, "missing argument 'pattern'"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
async def test_what_the_model_did_wrong_is_told_with_what_is_allowed(
    arguments: Any, said: str, reasoning: Asked
) -> None:
    told = await dispatch(reasoning, call(arguments))
    assert said in json.loads(told["output"])["error"]


async def test_a_reward_that_the_model_behind_cannot_serve_is_told(reasoning: Asked) -> None:
    tool_of_operator = GuidedReasoning(ScriptedBackend(["a"]), policy=_policy("entropy"))
    told = await dispatch(tool_of_operator, call({"question": "q"}))
    assert "reward 'entropy' needs confidence, which scripted cannot give" in json.loads(told["output"])["error"]


def _policy(*names: str) -> Any:
    from ets_agent import Policy

    return Policy(rewards=names)


async def test_a_tool_of_another_name_is_answered_by_that_name(reasoning: Asked) -> None:
    schema = tool(reasoning, name="solve", description="Solves.")
    assert (schema["function"]["name"], schema["function"]["description"]) == ("solve", "Solves.")
    told = await dispatch(reasoning, chat_call(name="solve"), name="solve")
    assert json.loads(told["content"])["answer"] == "42"
    told = await dispatch(reasoning, chat_call(), name="solve")
    assert json.loads(told["content"])["error"] == "there is no tool 'guided_reasoning'; allowed: solve"


async def test_a_full_queue_is_told_and_no_exception() -> None:
    async with Asked(ScriptedBackend(["a"], delay=60), max_concurrency=1, max_queue=0) as busy:
        first = asyncio.create_task(dispatch(busy, call()))
        await until_active(busy)
        told = await dispatch(busy, call())
        assert "try again later" in json.loads(told["output"])["error"]
        first.cancel()
        await asyncio.wait([first])


async def test_a_model_that_fails_is_an_exception_and_ends_the_other_calls(reasoning: Asked) -> None:
    await reasoning.scripted.aclose()
    for thing in (dispatch(reasoning, call()), dispatch_all(reasoning, [call(), call()])):
        with pytest.raises(BackendError, match="closed"):
            await thing


async def test_what_is_no_call_is_the_programs_mistake(reasoning: Asked) -> None:
    for thing in (None, {}, "call", {"type": "custom", "id": "c", "custom": {}}, {"call_id": "c", "name": "n"}):
        with pytest.raises(TypeError, match="is no tool call"):
            await dispatch(reasoning, thing)
    with pytest.raises(ValueError, match="allowed: chat, responses"):
        tool(reasoning, "completions")  # type: ignore[arg-type]


async def test_calls_of_the_agents_other_tools_are_left_to_it(reasoning: Asked) -> None:
    calls = [
        {"id": "1", "type": "function", "function": {"name": "search", "arguments": "{}"}},
        {"id": "2", "type": "function", "function": {"name": NAME, "arguments": '{"question": "How many?"}'}},
        {"id": "3", "type": "function", "function": {"name": "invented", "arguments": "{}"}},
    ]
    messages = await dispatch_all(reasoning, calls, other_tools={"search"})
    assert [message["tool_call_id"] for message in messages] == ["2", "3"]
    assert "there is no tool 'invented'" in messages[1]["content"]
