"""A tool for LangChain and LangGraph: ``ToolNode([tool(reasoning)])``, or the ``tools`` of an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backends import MissingExtraError
from ets_agent.adapters._reply import ask, ask_sync
from ets_agent.errors import RunningLoopError
from ets_agent.guided import GuidedReasoning, RequestError

if TYPE_CHECKING:
    from langchain_core.tools import StructuredTool


def tool(reasoning: GuidedReasoning, *, name: str | None = None, description: str | None = None) -> StructuredTool:
    """Return the tool, for ``await`` and for agents that run without an event loop.

    What the model asks wrongly becomes a tool message with status ``error``, so that the agent goes on. In a running
    event loop, `StructuredTool.invoke` raises `RunningLoopError`, because it would stop everything else there; use
    ``ainvoke``.

    Args:
        reasoning: The tool.
        name: What models call it.
        description: What models are told that it is for.

    Raises:
        backends.MissingExtraError: langchain-core is not installed.
    """
    try:
        from langchain_core.tools import StructuredTool, ToolException
    except ModuleNotFoundError as error:
        raise MissingExtraError("LangChain's tool needs langchain-core: pip install 'ets-agent[langchain]'") from error

    async def answer(**arguments: Any) -> str:
        try:
            return await ask(reasoning, arguments)
        except RequestError as error:
            raise ToolException(str(error)) from error

    def answer_sync(**arguments: Any) -> str:
        try:
            return ask_sync(reasoning, arguments)
        except RequestError as error:
            raise ToolException(str(error)) from error
        except RunningLoopError:
            message = "invoke would block the running event loop: use 'await tool.ainvoke(…)' here"
            raise RunningLoopError(message) from None

    return StructuredTool(
        name=name or reasoning.name,
        description=description or reasoning.description,
        args_schema=reasoning.parameters(),
        func=answer_sync,
        coroutine=answer,
        handle_tool_error=True,
    )
