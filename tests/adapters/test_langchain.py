"""The tool within LangChain and LangGraph, with a fake chat model as the agent's model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from backends import BackendError
from ets_agent import RunningLoopError
from ets_agent.adapters import langchain
from tests.adapters.conftest import ARGUMENTS, REFUSAL, REFUSED, Asked, until_active
from tests.adapters.strict import check_tool


class FakeChatModel(BaseChatModel):
    """Calls the tool with each of its arguments, one after another, and repeats the last answer."""

    arguments: list[Any]
    tools: Sequence[dict[str, Any]] = ()

    @property
    def _llm_type(self) -> str:
        return "fake"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        # As the chat models of OpenAI and others do it.
        self.tools = [convert_to_openai_tool(tool, strict=True) for tool in tools]
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        if self.arguments:
            name = self.tools[0]["function"]["name"]
            calls = [{"name": name, "args": self.arguments.pop(0), "id": f"c{len(messages)}", "type": "tool_call"}]
            reply = AIMessage(content="", tool_calls=calls)
        else:
            reply = AIMessage(content=f"They are {json.loads(str(messages[-1].content))['answer']} apples.")
        return ChatResult(generations=[ChatGeneration(message=reply)])


def graph(reasoning: Asked, *arguments: Any) -> Any:
    """An agent of LangGraph's own parts."""
    tools = [langchain.tool(reasoning)]
    model = FakeChatModel(arguments=list(arguments)).bind_tools(tools)
    builder = StateGraph(MessagesState)
    builder.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("tools", ToolNode(tools))
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", tools_condition)
    builder.add_edge("tools", "model")
    return builder.compile()


def prebuilt(reasoning: Asked, *arguments: Any) -> Any:
    from langgraph.prebuilt import create_react_agent

    return create_react_agent(FakeChatModel(arguments=list(arguments)), [langchain.tool(reasoning)])


ASKED = {"messages": [HumanMessage("How many apples?")]}


@pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
@pytest.mark.parametrize("make", [graph, prebuilt])
async def test_the_agent_calls_the_tool_and_uses_what_it_says(make: Any, reasoning: Asked) -> None:
    state = await make(reasoning, ARGUMENTS).ainvoke(ASKED)
    assert state["messages"][-1].content == "They are 42 apples."
    assert reasoning.asked == [ARGUMENTS]


@pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
@pytest.mark.parametrize("make", [graph, prebuilt])
async def test_a_refusal_is_a_tool_message_and_the_agent_goes_on(make: Any, reasoning: Asked) -> None:
    state = await make(reasoning, REFUSED, ARGUMENTS).ainvoke(ASKED)
    refused, answered = (message for message in state["messages"] if isinstance(message, ToolMessage))
    assert (refused.status, refused.content) == ("error", REFUSAL)
    assert answered.status == "success"
    assert state["messages"][-1].content == "They are 42 apples."


def test_an_agent_without_an_event_loop_calls_it_too(reasoning: Asked) -> None:
    state = graph(reasoning, REFUSED, ARGUMENTS).invoke(ASKED)
    assert state["messages"][-1].content == "They are 42 apples."
    assert json.loads(langchain.tool(reasoning).invoke(ARGUMENTS))["answer"] == "42"


async def test_a_blocking_call_within_an_event_loop_is_refused(reasoning: Asked) -> None:
    with pytest.raises(RunningLoopError, match="use 'await tool\\.ainvoke"):
        langchain.tool(reasoning).invoke(ARGUMENTS)


async def test_chat_models_of_openai_get_a_strict_schema(reasoning: Asked) -> None:
    converted = convert_to_openai_tool(langchain.tool(reasoning), strict=True)
    check_tool(converted["function"])
    assert converted["function"]["parameters"] == reasoning.parameters()


async def test_cancelling_the_agent_ends_the_guided_run(slow: Asked) -> None:
    task = asyncio.create_task(graph(slow, ARGUMENTS).ainvoke(ASKED))
    await until_active(slow)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slow.scripted.active == 0


async def test_many_agents_share_one_tool(reasoning: Asked) -> None:
    states = await asyncio.gather(*(graph(reasoning, ARGUMENTS).ainvoke(ASKED) for _ in range(8)))
    assert [state["messages"][-1].content for state in states] == ["They are 42 apples."] * 8


async def test_arguments_that_langchain_has_itself_do_no_harm(reasoning: Asked) -> None:
    told = await langchain.tool(reasoning).ainvoke({**ARGUMENTS, "callbacks": [], "run_manager": 1, "arguments": {}})
    assert told.startswith("there is no argument ")


async def test_name_and_description_may_be_others(reasoning: Asked) -> None:
    made = langchain.tool(reasoning, name="solve", description="Solves.")
    assert (made.name, made.description) == ("solve", "Solves.")


async def test_a_model_that_fails_ends_the_run(reasoning: Asked) -> None:
    await reasoning.scripted.aclose()
    with pytest.raises(BackendError, match="closed"):
        await graph(reasoning, ARGUMENTS).ainvoke(ASKED)
