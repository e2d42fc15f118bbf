"""litellm speaks OpenAI's format: its calls go through the same schema and dispatcher."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ets_agent.adapters.openai_tools import dispatch_all, tool
from tests.adapters.chat_server import ChatServer
from tests.adapters.conftest import ARGUMENTS, REFUSAL, REFUSED, Asked
from tests.adapters.strict import check_tool

pytestmark = pytest.mark.filterwarnings("ignore:.*`ReadOnly` qualifier:UserWarning")


@pytest.fixture
async def litellm(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or importing it would ask the network
    import litellm

    yield litellm
    await litellm.close_litellm_async_clients()  # type: ignore[attr-defined]


async def test_the_agent_loop_calls_the_tool_and_uses_what_it_says(
    litellm: Any, server: ChatServer, reasoning: Asked
) -> None:
    def last_answer(messages: list[dict[str, Any]]) -> str:
        return f"They are {json.loads(messages[-1]['content'])['answer']} apples."

    server.script = [[("guided_reasoning", REFUSED)], [("guided_reasoning", ARGUMENTS)] * 2, last_answer]
    messages: list[Any] = [{"role": "user", "content": "How many apples?"}]
    while True:
        completion = await litellm.acompletion(
            model="openai/m", api_base=server.base_url, api_key="k", messages=messages, tools=[tool(reasoning)]
        )
        message = completion.choices[0].message
        if not message.tool_calls:
            break
        messages += [message, *await dispatch_all(reasoning, message.tool_calls)]
    assert message.content == "They are 42 apples."
    assert reasoning.asked == [REFUSED, ARGUMENTS, ARGUMENTS]
    assert REFUSAL in json.dumps(server.requests[1])
    assert len(server.requests[2]["messages"]) == 6
    check_tool(server.requests[0]["tools"][0]["function"])
