"""The tool within pydantic-ai, with its test model and with a function as the agent's model."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent, UnexpectedModelBehavior
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.providers.openai import OpenAIProvider

from backends import BackendError
from ets_agent.adapters import pydantic_ai
from tests.adapters.chat_server import ChatServer
from tests.adapters.conftest import ARGUMENTS, REFUSAL, REFUSED, Asked, until_active
from tests.adapters.strict import check_tool


def model(*arguments: Any, seen: list[ModelMessage] | None = None) -> FunctionModel:
    """A model that calls the tool with these arguments one after another, and repeats the last answer."""
    left = list(arguments)

    def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if seen is not None:
            seen[:] = messages
        if left:
            return ModelResponse(parts=[ToolCallPart(info.function_tools[0].name, left.pop(0))])
        told = next(part for part in messages[-1].parts if isinstance(part, ToolReturnPart))
        return ModelResponse(parts=[TextPart(f"They are {json.loads(str(told.content))['answer']} apples.")])

    return FunctionModel(respond)


def agent(reasoning: Asked, own: Any) -> Agent[object, str]:
    return Agent(own, tools=[pydantic_ai.tool(reasoning)])


async def test_the_agent_calls_the_tool_and_uses_what_it_says(reasoning: Asked) -> None:
    assert (await agent(reasoning, model(ARGUMENTS)).run("How many?")).output == "They are 42 apples."
    assert reasoning.asked == [ARGUMENTS]


async def test_its_test_model_makes_arguments_from_the_schema(reasoning: Asked) -> None:
    own = TestModel(seed=4)  # It takes the last branch of the reward, which is null, and 4 for numbers.
    result = await agent(reasoning, own).run("How many?")
    told = json.loads(json.loads(result.output)["guided_reasoning"])
    assert set(told) == {"answer", "confidence", "cut_short"}
    assert reasoning.asked == [{"question": "e", "reward": None, "effort": "medium", "max_tokens": 4, "timeout": 4}]
    assert own.last_model_request_parameters is not None
    [offered] = own.last_model_request_parameters.function_tools
    assert offered.parameters_json_schema == reasoning.parameters()


async def test_its_schema_is_taken_as_strict_by_openais_models(reasoning: Asked) -> None:
    from pydantic_ai.profiles.openai import OpenAIJsonSchemaTransformer

    transformer = OpenAIJsonSchemaTransformer(reasoning.parameters(), strict=None)
    assert transformer.walk() == reasoning.parameters()
    assert transformer.is_strict_compatible


async def test_a_refusal_is_a_retry_and_the_run_goes_on(reasoning: Asked) -> None:
    seen: list[ModelMessage] = []
    own = model(REFUSED, ARGUMENTS, seen=seen)
    assert (await agent(reasoning, own).run("How many?")).output == "They are 42 apples."
    returns = [part for message in seen for part in message.parts if isinstance(part, ToolReturnPart)]
    assert [part.outcome for part in returns] == ["retried", "success"]
    assert returns[0].content == REFUSAL


async def test_a_model_that_does_not_learn_ends_the_run(reasoning: Asked) -> None:
    with pytest.raises(UnexpectedModelBehavior, match="exceeded max retries"):
        await agent(reasoning, model(REFUSED, REFUSED, ARGUMENTS)).run("How many?")
    patient = Agent(model(REFUSED, REFUSED, ARGUMENTS), tools=[pydantic_ai.tool(reasoning)], retries=2)
    assert (await patient.run("How many?")).output == "They are 42 apples."


async def test_cancelling_the_run_ends_the_guided_one(slow: Asked) -> None:
    task = asyncio.create_task(agent(slow, model(ARGUMENTS)).run("How many?"))
    await until_active(slow)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.scripted.active == 0


async def test_many_agents_share_one_tool(reasoning: Asked) -> None:
    results = await asyncio.gather(*(agent(reasoning, model(ARGUMENTS)).run("How many?") for _ in range(8)))
    assert [result.output for result in results] == ["They are 42 apples."] * 8


async def test_name_and_description_may_be_others(reasoning: Asked) -> None:
    made = pydantic_ai.tool(reasoning, name="solve", description="Solves.")
    assert (made.name, made.description) == ("solve", "Solves.")


async def test_a_model_that_fails_ends_the_run(reasoning: Asked) -> None:
    await reasoning.scripted.aclose()
    with pytest.raises(BackendError, match="closed"):
        await agent(reasoning, model(ARGUMENTS)).run("How many?")


async def test_over_openais_protocol_the_schema_arrives_strict(reasoning: Asked, server: ChatServer) -> None:
    server.script = [[("guided_reasoning", ARGUMENTS)], lambda messages: messages[-1]["content"]]
    async with AsyncOpenAI(base_url=server.base_url, api_key="k") as client:
        own = OpenAIChatModel("m", provider=OpenAIProvider(openai_client=client))
        result = await agent(reasoning, own).run("How many?")
    assert json.loads(result.output)["answer"] == "42"
    check_tool(server.requests[0]["tools"][0]["function"])
