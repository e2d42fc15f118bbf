"""What OpenAI's strict mode can say of an argument, and JSON text for what it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KEPT = ("type", "enum", "description", "items", "anyOf")
"""What strict mode understands of a schema, everywhere and for all models."""


def strict_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return what strict mode can say of an argument's schema; JSON text stands for what it cannot."""
    if not sayable(schema):
        about = schema.get("description", "")
        return {"type": "string", "description": f"{about} As JSON text.".strip()}
    kept = {key: schema[key] for key in _KEPT if key in schema}
    if "const" in schema:
        kept["enum"] = [schema["const"]]
    if "anyOf" in kept:
        kept["anyOf"] = [strict_schema(branch) for branch in kept["anyOf"] if sayable(branch)]
    if "items" in kept:
        kept["items"] = strict_schema(kept["items"])
    return kept


def sayable(schema: Mapping[str, Any]) -> bool:
    """Say whether strict mode can express a schema: everything has a type, and there are no free objects."""
    if "anyOf" in schema:
        return any(sayable(branch) for branch in schema["anyOf"] if branch != {"type": "null"})
    if schema.get("type") == "array":
        return "prefixItems" not in schema and sayable(schema.get("items", {}))
    return schema.get("type") in ("string", "integer", "number", "boolean", "null")
