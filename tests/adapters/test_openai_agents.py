"""The tool within the OpenAI Agents SDK, whose own scripted model plays the agent's model."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from agents import Agent, OpenAIChatCompletionsModel, RunConfig, Runner
from agents.exceptions import UserError
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from openai import AsyncOpenAI

from ets_agent.adapters import openai_agents
from tests.adapters.chat_server import ChatServer
from tests.adapters.conftest import ARGUMENTS, REFUSAL, REFUSED, Asked, until_active
from tests.adapters.strict import check_tool

QUIET = RunConfig(tracing_disabled=True)


def repeat_the_answer(call: Any) -> Any:
    told = json.loads(call.input[-1]["output"])
    return [assistant_message(f"They are {told['answer']} apples.")]


def model(*arguments: Any) -> ScriptedModel:
    """A model that calls the tool with these arguments one after another, and repeats the last answer."""
    calls = [[function_call("guided_reasoning", each, call_id=f"c{n}")] for n, each in enumerate(arguments)]
    return ScriptedModel([*calls, ModelStep.respond(repeat_the_answer)])


async def run(script: ScriptedModel, reasoning: Asked) -> Any:
    agent = Agent(name="counter", model=script, tools=[openai_agents.tool(reasoning)])
    return await Runner.run(agent, "How many apples?", run_config=QUIET)


async def test_the_agent_calls_the_tool_and_uses_what_it_says(reasoning: Asked) -> None:
    script = model(ARGUMENTS)
    result = await run(script, reasoning)
    assert result.final_output == "They are 42 apples."
    assert reasoning.asked == [ARGUMENTS]
    [offered] = script.calls[0].tools
    assert (offered.name, offered.strict_json_schema) == ("guided_reasoning", True)
    assert offered.params_json_schema == reasoning.parameters()


@pytest.mark.parametrize(("wrong", "said"), [(REFUSED, REFUSAL), ("{oops", "not valid JSON")])
async def test_a_refusal_comes_back_and_the_run_goes_on(wrong: Any, said: str, reasoning: Asked) -> None:
    script = model(wrong, ARGUMENTS)
    assert (await run(script, reasoning)).final_output == "They are 42 apples."
    assert said in script.calls[1].input[-1]["output"]


async def test_cancelling_the_run_ends_the_guided_one(slow: Asked) -> None:
    task = asyncio.create_task(run(model(ARGUMENTS), slow))
    await until_active(slow)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.scripted.active == 0


async def test_many_agents_share_one_tool(reasoning: Asked) -> None:
    results = await asyncio.gather(*(run(model(ARGUMENTS), reasoning) for _ in range(8)))
    assert [result.final_output for result in results] == ["They are 42 apples."] * 8
    assert len(reasoning.asked) == 8


async def test_name_and_description_may_be_others(reasoning: Asked) -> None:
    made = openai_agents.tool(reasoning, name="solve", description="Solves.")
    assert (made.name, made.description) == ("solve", "Solves.")


async def test_a_model_that_fails_ends_the_run(reasoning: Asked) -> None:
    await reasoning.scripted.aclose()
    with pytest.raises(UserError, match="closed"):
        await run(model(ARGUMENTS), reasoning)


async def test_over_openais_protocol_the_schema_arrives_strict(reasoning: Asked, server: ChatServer) -> None:
    server.script = [[("guided_reasoning", ARGUMENTS)], lambda messages: messages[-1]["content"]]
    async with AsyncOpenAI(base_url=server.base_url, api_key="k") as client:
        agent = Agent(
            name="counter",
            model=OpenAIChatCompletionsModel(model="m", openai_client=client),
            tools=[openai_agents.tool(reasoning)],
        )
        result = await Runner.run(agent, "How many apples?", run_config=QUIET)
    assert json.loads(result.final_output)["answer"] == "42"
    check_tool(server.requests[0]["tools"][0]["function"])
