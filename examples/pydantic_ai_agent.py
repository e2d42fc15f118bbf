"""Guided reasoning as a tool of a pydantic-ai agent.

Runs offline: the agent's own model is a function that calls the tool once. For a real one, give a model's name in its
place, such as ``"openai:…"``. The tool reasons with the embedded model.

    pip install -e ".[local,pydantic-ai]"
    python examples/pydantic_ai_agent.py
"""

from __future__ import annotations

import asyncio

import stand_in
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from ets_agent import ETSConfig, GuidedReasoning
from ets_agent.adapters import pydantic_ai

QUESTION = "Olga has 342 marbles. Olga gives 218 to Rosa. Olga finds 117 more. How many marbles does Olga have now?"


def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Call the tool, then say what it told."""
    told = [part.content for part in messages[-1].parts if isinstance(part, ToolReturnPart)]
    if not told:
        return ModelResponse(parts=[ToolCallPart(info.function_tools[0].name, stand_in.arguments(QUESTION))])
    print("the tool said", told[0])
    return ModelResponse(parts=[TextPart(stand_in.say(str(told[0])))])


async def main() -> None:
    """Ask the agent one question."""
    async with GuidedReasoning("tiny/qwen3", config=ETSConfig(max_tokens=64, seed=0)) as reasoning:
        model = FunctionModel(respond)  # A real model: its name
        agent = Agent(model, instructions="Use the tool for arithmetic.", tools=[pydantic_ai.tool(reasoning)])
        print((await agent.run(QUESTION)).output)


if __name__ == "__main__":
    asyncio.run(main())
