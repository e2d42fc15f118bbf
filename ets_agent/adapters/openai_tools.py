"""Function calling with OpenAI's APIs, and with everything that speaks them, such as litellm: schema and dispatcher.

    message = (await client.chat.completions.create(…, tools=[tool(reasoning)])).choices[0].message
    messages += [message, *await dispatch_all(reasoning, message.tool_calls or ())]

Nothing is imported here: calls and items are objects or mappings of the right shape.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any, Literal

from backends.concurrency import all_of
from ets_agent.adapters._reply import ask, for_model_error
from ets_agent.guided import GuidedReasoning, RequestError


def tool(
    reasoning: GuidedReasoning,
    api: Literal["chat", "responses"] = "chat",
    *,
    strict: bool = True,
    name: str | None = None,
    description: str | None = None,
) -> dict[str, Any]:
    """Return the tool as a list ``tools`` has it.

    Args:
        reasoning: The tool.
        api: Whose list: that of chat completions (or litellm), or that of the Responses API, which is flat.
        strict: Whether models are held to the schema (strict mode), where every parameter is given, if only as null.
            Without it parameters may be left out, and are checked by the tool alone.
        name: What models call it.
        description: What models are told that it is for.

    Raises:
        ValueError: There is no such API.
    """
    function = {
        "name": name or reasoning.name,
        "description": description or reasoning.description,
        "parameters": reasoning.parameters(strict=strict),
        "strict": strict,
    }
    match api:
        case "chat":
            return {"type": "function", "function": function}
        case "responses":
            return {"type": "function", **function}
    raise ValueError(f"api is {api!r}; allowed: chat, responses")


async def dispatch(reasoning: GuidedReasoning, call: Any, *, name: str | None = None) -> dict[str, Any]:
    """Answer one tool call and return the message that the model gets.

    Whatever the model did wrong, invalid JSON or a reward that is not allowed, is told in the message with what is
    allowed. Cancelling ends the work.

    Args:
        reasoning: The tool.
        call: An element of ``message.tool_calls``, or an item ``function_call`` of ``response.output``.
        name: What models call the tool, where it has another name than usual.

    Returns:
        ``{"role": "tool", "tool_call_id": …, "content": …}``, or for the Responses API
        ``{"type": "function_call_output", "call_id": …, "output": …}``.

    Raises:
        TypeError: It is no call of a function.
        backends.BackendError: The model behind the tool failed.
    """
    function = _get(call, "function")
    called = call if function is None else function
    call_id = _get(call, "call_id" if function is None else "id")
    if call_id is None or _get(called, "name") is None or _get(called, "arguments") is None:
        raise TypeError(f"{call!r:.200} is no tool call of chat completions and no function_call item of a response")
    content = await _content(reasoning, _get(called, "name"), _get(called, "arguments"), name or reasoning.name)
    if function is None:
        return {"type": "function_call_output", "call_id": call_id, "output": content}
    return {"role": "tool", "tool_call_id": call_id, "content": content}


async def dispatch_all(
    reasoning: GuidedReasoning, calls: Iterable[Any], *, name: str | None = None, other_tools: Container[str] = ()
) -> list[dict[str, Any]]:
    """Answer the calls of a message at the same time and return the messages in the order of the calls.

    Args:
        reasoning: The tool.
        calls: ``message.tool_calls``, or ``response.output``, of which only items ``function_call`` count.
        name: What models call the tool, where it has another name than usual.
        other_tools: Names of the agent's other tools, whose calls are left to it. Of any further name the model is told
            that there is no such tool.

    Raises:
        TypeError: Something is no call of a function.
        backends.BackendError: The model behind the tool failed; the other calls are cancelled.
    """
    wanted = [call for call in calls if _get(call, "type") in (None, "function", "function_call")]
    own = [call for call in wanted if _get(_get(call, "function") or call, "name") not in other_tools]
    return await all_of([dispatch(reasoning, call, name=name) for call in own])


async def _content(reasoning: GuidedReasoning, called: str, arguments: str, name: str) -> str:
    try:
        if called != name:
            raise RequestError(f"there is no tool {called!r:.80}; allowed: {name}")
        return await ask(reasoning, arguments)
    except RequestError as error:
        return for_model_error(error)


def _get(thing: Any, name: str) -> Any:
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)
