"""Guided reasoning as a tool with litellm, which speaks OpenAI's format to every provider.

Schema and dispatcher are those for OpenAI's client. Runs offline: the agent's own model is a stand-in that calls the
tool once (`stand_in.py`). For a real one, leave ``api_base`` and ``api_key`` out and give a model's name, such as
``anthropic/…``. The tool reasons with the embedded model.

    pip install -e ".[local,litellm]"
    python examples/litellm_tools.py
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import stand_in

from ets_agent import ETSConfig, GuidedReasoning
from ets_agent.adapters import openai_tools

os.environ.setdefault(
    "LITELLM_LOCAL_MODEL_COST_MAP", "True"
)  # Importing litellm asks the network for prices otherwise.
import litellm

QUESTION = "Olga has 342 marbles. Olga gives 218 to Rosa. Olga finds 117 more. How many marbles does Olga have now?"


async def main() -> None:
    """Let the model call the tool until it has something to say."""
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    config = ETSConfig(max_tokens=64, seed=0)
    with stand_in.serve() as base_url:
        model = {"model": "openai/stand-in", "api_base": base_url, "api_key": "none"}  # A real one: {"model": "…"}
        async with GuidedReasoning("tiny/qwen3", config=config) as reasoning:
            tools = [openai_tools.tool(reasoning)]
            while True:
                completion = await litellm.acompletion(**model, messages=messages, tools=tools)
                message = completion.choices[0].message
                if not message.tool_calls:
                    break
                messages += [message, *await openai_tools.dispatch_all(reasoning, message.tool_calls)]
                print("the tool said", messages[-1]["content"])
        print(message.content)
        await litellm.close_litellm_async_clients()


if __name__ == "__main__":
    asyncio.run(main())
