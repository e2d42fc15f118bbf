"""A tool for pydantic-ai: ``Agent(…, tools=[tool(reasoning)])``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backends import MissingExtraError
from ets_agent.adapters._reply import ask
from ets_agent.guided import GuidedReasoning, RequestError

if TYPE_CHECKING:
    from pydantic_ai import Tool


def tool(reasoning: GuidedReasoning, *, name: str | None = None, description: str | None = None) -> Tool[object]:
    """Return the tool. What the model asks wrongly is a retry, of which the agent's ``retries`` allow so many.

    Args:
        reasoning: The tool.
        name: What models call it.
        description: What models are told that it is for.

    Raises:
        backends.MissingExtraError: pydantic-ai is not installed.
    """
    try:
        from pydantic_ai import ModelRetry, Tool
    except ModuleNotFoundError as error:
        raise MissingExtraError("pydantic-ai's tool needs pydantic-ai: pip install 'ets-agent[pydantic-ai]'") from error

    async def answer(**arguments: Any) -> str:
        try:
            return await ask(reasoning, arguments)
        except RequestError as error:
            raise ModelRetry(str(error)) from error

    return Tool.from_schema(
        answer,
        name=name or reasoning.name,
        description=description or reasoning.description,
        json_schema=reasoning.parameters(),
    )
