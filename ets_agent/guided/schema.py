"""The JSON schema of the tool as agents see it, with exactly the rewards and arguments that the policy offers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from ets_agent.guided.policy import Policy, RewardOffer
from ets_agent.guided.request import Effort, GuidedRequest

TOOL_NAME = "guided_reasoning"

TOOL_DESCRIPTION = (
    "Answer a hard, self-contained question with guided sampling: many candidate answers are drawn and judged, and the "
    "best supported one is returned with a confidence. Use it where a single guess may be wrong: arithmetic, logic, "
    "multi-step reasoning, structured output."
)

_KEPT = ("type", "enum", "description", "items", "anyOf")
"""What strict mode understands of a schema, besides what is set below."""


def tool_parameters(policy: Policy, *, strict: bool = True) -> dict[str, Any]:
    """Return the JSON schema of the tool's parameters.

    Args:
        policy: What is on offer.
        strict: As OpenAI's strict mode has it: all parameters are required, and null is no answer; free objects, such
            as a JSON schema, are given as JSON text. Otherwise parameters may be left out.
    """
    fields = GuidedRequest.model_json_schema()["properties"]
    properties: dict[str, Any] = {
        "question": {"type": "string", "description": fields["question"]["description"]},
        "reward": {
            "anyOf": [_offer(offer, strict=strict) for offer in policy.offers.values()],
            "description": fields["reward"]["description"]
            + f" By default {next(iter(policy.offers))}, without arguments.",
        },
        "effort": {
            "type": "string",
            "enum": list(get_args(Effort)),
            "description": fields["effort"]["description"] + " By default medium.",
        },
        "max_tokens": {
            "type": "integer",
            "description": f"{fields['max_tokens']['description']} At most {policy.max_tokens}.",
        },
        "timeout": {"type": "number", "description": _timeout(fields["timeout"]["description"], policy)},
    }
    return _object(properties, required=["question"], strict=strict)


def _offer(offer: RewardOffer, *, strict: bool) -> dict[str, Any]:
    """Return the schema of one reward, named by its ``name``."""
    properties: dict[str, Any] = {"name": {"type": "string", "enum": [offer.name]}}
    required = ["name"]
    for name, schema in offer.schemas.items():
        if "default" not in schema:
            required.append(name)
        properties[name] = _strict(schema) if strict else schema
    return {**_object(properties, required=required, strict=strict), "description": offer.summary}


def _object(properties: Mapping[str, Any], *, required: list[str], strict: bool) -> dict[str, Any]:
    if not strict:
        return {
            "type": "object",
            "properties": dict(properties),
            "required": required,
            "additionalProperties": False,
        }
    return {
        "type": "object",
        "properties": {name: schema if name in required else _nullable(schema) for name, schema in properties.items()},
        "required": list(properties),
        "additionalProperties": False,
    }


def _nullable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema that allows null, too."""
    null = {"type": "null"}
    if "anyOf" in schema:
        others = [branch for branch in schema["anyOf"] if branch != null]
        return {**schema, "anyOf": [*others, null]}
    inner = {key: value for key, value in schema.items() if key != "description"}
    return {"anyOf": [inner, null], **({"description": schema["description"]} if "description" in schema else {})}


def _strict(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return what strict mode can say of an argument's schema; JSON text stands for what it cannot."""
    if not _sayable(schema):
        about = schema.get("description", "")
        return {"type": "string", "description": f"{about} As JSON text.".strip()}
    kept = {key: schema[key] for key in _KEPT if key in schema}
    if "anyOf" in kept:
        kept["anyOf"] = [_strict(branch) for branch in kept["anyOf"] if _sayable(branch)]
    if "items" in kept:
        kept["items"] = _strict(kept["items"])
    return kept


def _sayable(schema: Mapping[str, Any]) -> bool:
    """Say whether strict mode can express a schema: everything has a type, and there are no free objects."""
    if "anyOf" in schema:
        return any(_sayable(branch) for branch in schema["anyOf"] if branch != {"type": "null"})
    if schema.get("type") == "array":
        return "prefixItems" not in schema and _sayable(schema.get("items", {}))
    return schema.get("type") in {"string", "integer", "number", "boolean", "null"} or "enum" in schema


def _timeout(description: str, policy: Policy) -> str:
    if policy.max_seconds is None:
        return description
    return f"{description} At most {policy.max_seconds:g}, which is also the default."
