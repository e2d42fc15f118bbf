"""Structured output: whether a response holds JSON that a schema allows."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

from backends import Completion, Prompt
from rewards.errors import RewardSpecError
from rewards.pointwise import PointwiseReward
from rewards.registry import register
from rewards.workers import Workers

SECONDS = 1.0
"""Most processor time of one check: the patterns in a schema may take for ever."""

_FENCE = re.compile(r"```[ \t]*+(?:json|JSON)?[ \t]*+\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)

_workers = Workers(
    "rewards.json_schema:problem",
    name="checking a schema",
    seconds=20 * SECONDS,
    cpu_seconds=SECONDS,
)


@register("json_schema")
class JSONSchema(PointwiseReward):
    """Reward 1 for responses that hold JSON which a schema allows, 0 for others; no oracle, it sees the form alone.

    The JSON is the last code block of the response that is JSON, or all of the response, or what stands between its
    first and its last brace or bracket.
    """

    minimum, maximum = 0.0, 1.0

    def __init__(self, schema: dict[str, Any]) -> None:
        """Set the schema.

        Args:
            schema: A JSON schema; its draft is that of its ``$schema``, by default the newest. References to other
                documents are not followed.

        Raises:
            RewardSpecError: The schema is none. A reference that leads nowhere shows only when it is followed.
        """
        from jsonschema import SchemaError

        try:
            self._schema = json.dumps(schema, allow_nan=False)
            _validator(self._schema)
        except (SchemaError, TypeError, ValueError, RecursionError) as error:
            reason = error.message if isinstance(error, SchemaError) else error
            raise RewardSpecError(f"this is no JSON schema: {reason}") from error

    async def judge(self, prompt: Prompt, completion: Completion) -> float:
        """Return 1 for JSON that the schema allows, 0 for other JSON or none."""
        found = find_json(completion.text)
        return 0.0 if found is None else float(await _workers.call(self._schema, found) is None)

    def answer(self, completion: Completion) -> str | None:
        """Return the JSON, as it is written."""
        return find_json(completion.text)


def find_json(text: str) -> str | None:
    """Return the JSON in a response, as it is written there, or None if there is none; see `JSONSchema`."""
    first = min((place for place in (text.find("{"), text.find("[")) if place >= 0), default=len(text))
    last = max(text.rfind("}"), text.rfind("]")) + 1
    blocks = [match[1] for match in _FENCE.finditer(text)]
    for part in [*reversed(blocks), text, text[first:last]]:
        if (part := part.strip()) and _is_json(part):
            return part
    return None


def problem(schema: str, text: str) -> str | None:
    """Return what the schema has against a JSON text, or None for nothing."""
    error = next(_validator(schema).iter_errors(json.loads(text)), None)
    return None if error is None else str(error.message)


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):  # RecursionError: deeper than any honest answer.
        return False
    return True


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


@functools.lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for
    from referencing import Registry

    value = json.loads(schema)
    kind = validator_for(value, default=Draft202012Validator)
    kind.check_schema(value)
    return kind(value, registry=Registry())  # The default registry would fetch what a schema refers to.
