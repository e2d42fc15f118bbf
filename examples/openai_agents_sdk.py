"""Guided reasoning as a tool of an agent of the OpenAI Agents SDK.

Runs offline: the agent's own model is the SDK's scripted model, which calls the tool once. For a real one, leave
``model=`` out or give a model's name. The tool reasons with the embedded model.

    pip install -e ".[local,openai-agents]"
    python examples/openai_agents_sdk.py
"""

from __future__ import annotations

import asyncio
from typing import Any

import stand_in
from agents import Agent, Runner, set_tracing_disabled
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call

from ets_agent import ETSConfig, GuidedReasoning
from ets_agent.adapters import openai_agents

QUESTION = "Olga has 342 marbles. Olga gives 218 to Rosa. Olga finds 117 more. How many marbles does Olga have now?"


def last_words(call: Any) -> Any:
    """Say what the tool told."""
    print("the tool said", call.input[-1]["output"])
    return [assistant_message(stand_in.say(call.input[-1]["output"]))]


async def main() -> None:
    """Ask the agent one question."""
    set_tracing_disabled(True)  # Traces go to OpenAI otherwise.
    scripted = ScriptedModel(
        [
            [function_call("guided_reasoning", stand_in.arguments(QUESTION), call_id="call_1")],
            ModelStep.respond(last_words),
        ]
    )
    async with GuidedReasoning("tiny/qwen3", config=ETSConfig(max_tokens=64, seed=0)) as reasoning:
        agent = Agent(
            name="Assistant",
            instructions="Use guided_reasoning for arithmetic.",
            tools=[openai_agents.tool(reasoning)],
            model=scripted,  # A real model: its name
        )
        result = await Runner.run(agent, QUESTION)
        print(result.final_output)


if __name__ == "__main__":
    asyncio.run(main())
