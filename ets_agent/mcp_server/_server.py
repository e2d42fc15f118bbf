"""The tool as the protocol's objects: what is listed, what a call returns, and how its failures are told."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import mcp_types as types
from mcp.server import Server, ServerRequestContext
from mcp.shared.exceptions import MCPError

from backends import BackendError, QueueFullError
from ets_agent import __version__
from ets_agent.guided import GuidedAnswer, Policy, RequestError
from ets_agent.guided.schema import TOOL_DESCRIPTION, TOOL_NAME, tool_parameters
from ets_agent.mcp_server._calls import CallEndedError, Calls
from ets_agent.mcp_server._progress import Note
from ets_agent.mcp_server._source import NotLoadedError, Source

_log = logging.getLogger(__name__)

Context = ServerRequestContext[Any, Any]

NAME = "ets-agent"
REWARDS_URI = "ets://rewards"
_JSON = "application/json"


def build(source: Source) -> tuple[Server[Any], Calls]:
    """Return a server with the tool, and the calls that it has under way."""
    calls = Calls(source)
    tool = types.Tool(
        name=TOOL_NAME,
        title="Guided reasoning",
        description=TOOL_DESCRIPTION,
        input_schema=tool_parameters(source.policy, strict=False),
        output_schema=GuidedAnswer.model_json_schema(mode="serialization"),
        # It asks one model and judges of the operator's choice, and changes nothing; another call costs only its work.
        annotations=types.ToolAnnotations(
            read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False
        ),
    )
    offers = types.Resource(
        name="rewards",
        title="Rewards on offer",
        uri=REWARDS_URI,
        description="How answers can be judged: each reward with the JSON schemas of its arguments, the default first.",
        mime_type=_JSON,
    )

    async def list_tools(context: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[tool])

    async def call_tool(context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        if params.name != tool.name:
            raise MCPError(code=types.INVALID_PARAMS, message=f"there is no tool {params.name!r}; allowed: {tool.name}")
        return await _call(calls, context, params.arguments or {})

    async def list_resources(
        context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        return types.ListResourcesResult(resources=[offers])

    async def read_resource(context: Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        if params.uri != REWARDS_URI:
            message = f"there is no resource {params.uri!r}; allowed: {REWARDS_URI}"
            raise MCPError(code=types.INVALID_PARAMS, message=message)
        text = json.dumps(rewards_on_offer(source.policy), indent=2, ensure_ascii=False)
        return types.ReadResourceResult(
            contents=[types.TextResourceContents(uri=REWARDS_URI, mime_type=_JSON, text=text)]
        )

    server: Server[Any] = Server(
        NAME,
        version=__version__,
        title="ets-agent",
        description="Guided reasoning for agents.",
        instructions=_instructions(source),
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_read_resource=read_resource,
    )
    return server, calls


def rewards_on_offer(policy: Policy) -> list[dict[str, Any]]:
    """Return the rewards that callers may ask for, the default one first, with the schemas of their arguments."""
    return [
        {"name": offer.name, "description": offer.summary, "arguments": offer.schemas}
        for offer in policy.offers.values()
    ]


async def _call(calls: Calls, context: Context, arguments: Mapping[str, Any]) -> types.CallToolResult:
    """Answer a call; what went wrong is a result, too, which the calling model reads and can do something about."""

    async def tell(note: Note) -> None:
        await context.session.report_progress(note.progress, note.total, note.message)

    async def gone() -> bool:
        # Over HTTP the caller may hang up. Nothing could bring the answer to it any more, so the run ends.
        return context.request is not None and await context.request.is_disconnected()

    try:
        return _result(await calls.answer(arguments, tell=tell, gone=gone))
    except (RequestError, QueueFullError, NotLoadedError, CallEndedError) as error:
        return _failure(str(error))
    except BackendError as error:
        _log.warning("a call failed: %s: %s", type(error).__name__, error)
        # Details may name machines that are nobody's business; over stdio, they are those of whoever started it.
        return _failure("the model failed" if context.request is not None else f"the model failed: {error}")
    except Exception:
        _log.exception("a call failed")
        return _failure("the call failed for a reason that only the server's log tells")


def _result(answer: GuidedAnswer) -> types.CallToolResult:
    said = answer.text if answer.answer is None else answer.answer
    if not said:
        nothing = "no response was complete in time" if answer.cut_short else "the model said nothing"
        said = f"There is no answer: {'; '.join(answer.warnings) or nothing}."
    return types.CallToolResult(
        content=[types.TextContent(text=said), types.TextContent(text=_remark(answer))],
        structured_content=json.loads(answer.model_dump_json()),  # Whose infinities are text, unlike model_dump's.
    )


def _failure(message: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=message)], is_error=True)


def _remark(answer: GuidedAnswer) -> str:
    """Say in one line how sure the search was, and whether it was cut short."""
    if answer.confidence is None:
        sure = "Nothing was weighed, so there is no confidence."
    else:
        sure = f"Confidence {answer.confidence:.2f}: the share of weight behind this answer, no probability."
    if not answer.cut_short:
        return sure
    limit = "time limit" if answer.finish_reason == "timeout" else "token budget"
    return f"{sure} The search was cut short by its {limit}; this is the best answer so far."


def _instructions(source: Source) -> str:
    policy = source.policy
    limit = "" if policy.max_seconds is None else f", {policy.max_seconds:g} at most,"
    return (
        f"{TOOL_NAME} puts many samples of the model {source.model} into one answer. Hand it one hard "
        "question that is complete in itself, for it sees nothing else of the conversation, and choose by `reward` how "
        f"answers are judged: {', '.join(policy.offers)}. A call takes seconds to minutes; `timeout` (seconds{limit}) "
        "returns the best answer so far, marked `cut_short`. `confidence` says how much the search agreed with itself "
        "and is no probability of being right. Refused requests say what is allowed."
    )
