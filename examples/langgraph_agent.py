"""Guided reasoning as a tool of a LangGraph agent, made of LangGraph's own parts.

Runs offline: the agent's own model is a fake chat model that calls the tool once. For a real one, take any chat model
that knows tools, such as ``ChatOpenAI(…)``. The tool reasons with the embedded model.

    pip install -e ".[local,langchain]" langgraph
    python examples/langgraph_agent.py
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import stand_in
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from ets_agent import ETSConfig, GuidedReasoning
from ets_agent.adapters import langchain

QUESTION = "Olga has 342 marbles. Olga gives 218 to Rosa. Olga finds 117 more. How many marbles does Olga have now?"


class StandIn(BaseChatModel):
    """Calls the tool, then says what it told."""

    tool: str = ""

    @property
    def _llm_type(self) -> str:
        return "stand-in"

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> Any:
        """Take note of the tool."""
        return self.model_copy(update={"tool": tools[0].name})

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        last = messages[-1]
        if isinstance(last, ToolMessage):
            print("the tool said", last.content)
            reply = AIMessage(stand_in.say(str(last.content)))
        else:
            call = {"name": self.tool, "args": stand_in.arguments(str(last.content)), "id": "call_1"}
            reply = AIMessage("", tool_calls=[call])
        return ChatResult(generations=[ChatGeneration(message=reply)])


async def main() -> None:
    """Ask the agent one question."""
    async with GuidedReasoning("tiny/qwen3", config=ETSConfig(max_tokens=64, seed=0)) as reasoning:
        tools = [langchain.tool(reasoning)]
        model = StandIn().bind_tools(tools)  # A real model: ChatOpenAI(…).bind_tools(tools)

        async def think(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await model.ainvoke(state["messages"])]}

        graph = StateGraph(MessagesState)
        graph.add_node("model", think)
        graph.add_node("tools", ToolNode(tools))
        graph.add_edge(START, "model")
        graph.add_conditional_edges("model", tools_condition)
        graph.add_edge("tools", "model")
        state = await graph.compile().ainvoke({"messages": [("user", QUESTION)]})
        print(state["messages"][-1].content)


if __name__ == "__main__":
    asyncio.run(main())
