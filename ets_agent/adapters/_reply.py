"""What passes between a model that calls the tool and `GuidedReasoning`, the same in every framework."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from backends import QueueFullError
from ets_agent.guided import GuidedAnswer, GuidedReasoning, RequestError
from ets_agent.guided.schema import check_arguments

_log = logging.getLogger(__name__)


async def ask(reasoning: GuidedReasoning, arguments: str | Mapping[str, Any]) -> str:
    """Return what the model is told that called the tool.

    Args:
        reasoning: The tool.
        arguments: What the model gave, as an object or as its JSON text.

    Raises:
        RequestError: The model's mistake, with what is allowed; it can correct itself.
        backends.BackendError: The model behind the tool failed.
    """
    request = check_arguments(arguments, reasoning.policy)
    try:
        return for_model(await reasoning(request))
    except QueueFullError as error:
        return _turned_away(error)


def ask_sync(reasoning: GuidedReasoning, arguments: str | Mapping[str, Any]) -> str:
    """Return what `ask` returns, where there is no event loop.

    Raises:
        RunningLoopError: An event loop is running in this thread; use `ask` there.
    """
    request = check_arguments(arguments, reasoning.policy)
    try:
        return for_model(reasoning.answer_sync(request))
    except QueueFullError as error:
        return _turned_away(error)


def _turned_away(error: QueueFullError) -> str:
    """Tell of a full queue: no mistake of the model's, nor an end of its work; it may ask again, or do without."""
    _log.warning("a tool call was turned away: %s", error)
    return for_model_error("too many questions wait already; try again later, or go on without this tool")


def for_model(answer: GuidedAnswer) -> str:
    """Return an answer as compact JSON.

    A final answer comes without the text that it was read in, which the model would pay for in tokens; without one,
    the text is what there is.
    """
    told: dict[str, Any] = {"answer": answer.answer}
    if answer.answer is None:
        told["text"] = answer.text
    told["confidence"] = None if answer.confidence is None else round(answer.confidence, 3)
    told["cut_short"] = answer.cut_short
    if answer.warnings:
        told["warnings"] = answer.warnings
    return _json(told)


def for_model_error(error: RequestError | str) -> str:
    """Return what went wrong as compact JSON, in frameworks that know no errors of a tool."""
    return _json({"error": str(error)})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
