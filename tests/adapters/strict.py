"""OpenAI's documented rules of strict mode, as far as all models know them.

Sources: the guide to structured outputs ("supported schemas"), the guide to function calling ("strict mode"), and the
limits of tool definitions in the API reference.
"""

from __future__ import annotations

import re
from typing import Any

_ALLOWED = {
    "object": {"type", "description", "properties", "required", "additionalProperties"},
    "array": {"type", "description", "items"},
    "string": {"type", "description", "enum"},
    "integer": {"type", "description", "enum"},
    "number": {"type", "description", "enum"},
    "boolean": {"type", "description", "enum"},
    "null": {"type", "description"},
}
"""Keywords by type. Limits such as ``minimum`` are known to some models only, so they do not stand here."""


def check_tool(function: dict[str, Any]) -> None:
    """Check name, description and parameters of a function."""
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", function["name"])
    assert 0 < len(function["description"]) <= 1024
    assert function["strict"] is True
    parameters = function["parameters"]
    assert parameters["type"] == "object", "the root must be an object, and no anyOf"
    problems, properties, texts, enums = [], [0], [0], [0]
    _check(parameters, "parameters", 1, problems, properties, texts, enums)
    assert not problems, problems
    assert properties[0] <= 5000
    assert texts[0] <= 120_000
    assert enums[0] <= 1000


def _check(
    schema: Any, where: str, depth: int, problems: list[str], properties: list[int], texts: list[int], enums: list[int]
) -> None:
    if depth > 10:
        problems.append(f"{where} is nested more than 10 levels deep")
        return
    if "anyOf" in schema:
        problems += [f"{where} has {key} beside anyOf" for key in schema if key not in ("anyOf", "description")]
        if not schema["anyOf"]:
            problems.append(f"{where} allows nothing")
        for number, branch in enumerate(schema["anyOf"]):
            _check(branch, f"{where}.anyOf[{number}]", depth, problems, properties, texts, enums)
        return
    kind = schema.get("type")
    if kind not in _ALLOWED:
        problems.append(f"{where} has type {kind!r}")
        return
    problems += [f"{where} has {key}" for key in schema if key not in _ALLOWED[kind]]
    if "enum" in schema:
        enums[0] += len(schema["enum"])
        texts[0] += sum(len(str(value)) for value in schema["enum"])
    if kind == "object":
        if schema.get("additionalProperties") is not False:
            problems.append(f"{where} may have other properties")
        if schema.get("required") != list(schema.get("properties", {})):
            problems.append(f"{where} does not require all its properties")
        for name, inner in schema.get("properties", {}).items():
            properties[0] += 1
            texts[0] += len(name)
            _check(inner, f"{where}.{name}", depth + 1, problems, properties, texts, enums)
    if kind == "array":
        if "items" not in schema:
            problems.append(f"{where} does not say of what")
        else:
            _check(schema["items"], f"{where}[]", depth + 1, problems, properties, texts, enums)
