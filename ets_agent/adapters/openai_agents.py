"""A tool for the OpenAI Agents SDK: ``Agent(…, tools=[tool(reasoning)])``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backends import MissingExtraError
from ets_agent.adapters._reply import ask, for_model_error
from ets_agent.guided import GuidedReasoning, RequestError

if TYPE_CHECKING:
    from agents import FunctionTool


def tool(reasoning: GuidedReasoning, *, name: str | None = None, description: str | None = None) -> FunctionTool:
    """Return the tool, in strict mode. What the model asks wrongly is its result, so that the run goes on.

    Args:
        reasoning: The tool.
        name: What models call it.
        description: What models are told that it is for.

    Raises:
        backends.MissingExtraError: The SDK is not installed.
    """
    try:
        from agents import FunctionTool
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "the Agents SDK's tool needs openai-agents: pip install 'ets-agent[openai-agents]'"
        ) from error

    async def invoke(_: Any, arguments: str) -> str:
        try:
            return await ask(reasoning, arguments)
        except RequestError as error:
            return for_model_error(error)

    return FunctionTool(
        name=name or reasoning.name,
        description=description or reasoning.description,
        params_json_schema=reasoning.parameters(),
        on_invoke_tool=invoke,
        strict_json_schema=True,
    )
