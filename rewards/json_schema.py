"""Structured output: whether a response holds JSON that a schema allows."""

from __future__ import annotations

import json
import re
from typing import Any

from backends import Completion, Prompt
from rewards._json import no_constant
from rewards.confined import ConfinedReward
from rewards.errors import RewardSpecError
from rewards.registry import register
from rewards.shared_workers import shared_workers

LONGEST = 100_000
"""Characters of a schema, as JSON."""

_FENCE = re.compile(r"```[ \t]*+(?:json|JSON)?[ \t]*+\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)


@register("json_schema", pure=True)
class JSONSchema(ConfinedReward):
    """Reward 1 for responses that hold JSON which a schema allows, 0 for others; no oracle, it sees the form alone.

    The JSON is the last code block of the response that is JSON, or all of the response, or what stands between its
    first and its last brace or bracket. A schema has at most 100,000 characters.
    """

    minimum, maximum = 0.0, 1.0
    workers = shared_workers("rewards._schema_check:problem", name="checking a schema")

    def __init__(self, schema: dict[str, Any]) -> None:
        """Set the schema.

        Args:
            schema: A JSON schema; its draft is that of its ``$schema``, by default the newest. References to other
                documents are not followed.

        Raises:
            RewardSpecError: The schema is none, or too long. What is wrong with a large one, or a reference that leads
                nowhere, shows only when a response is judged.
        """
        from rewards._schema_check import check_small

        try:
            self._schema = json.dumps(schema, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise RewardSpecError(f"this is no JSON schema: {error}") from error
        if len(self._schema) > LONGEST:
            raise RewardSpecError(f"the schema has {len(self._schema)} characters; allowed: at most {LONGEST}")
        self._checked = check_small(self._schema)

    async def judge(self, prompt: Prompt, completion: Completion) -> float:
        """Return 1 for JSON that the schema allows, 0 for other JSON or none.

        Raises:
            RewardError: It took too long, or the schema is none.
        """
        found = find_json(completion.text)
        if found is None and self._checked:
            return 0.0
        return float(await self.ask(self._schema, found) is None)

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


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=no_constant)
    except (ValueError, RecursionError):  # RecursionError: deeper than any honest answer.
        return False
    return True
