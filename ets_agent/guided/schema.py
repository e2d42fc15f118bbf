"""The JSON schema of the tool as agents see it, with exactly the rewards and arguments that the policy offers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

from ets_agent.guided.policy import Policy, RewardOffer
from ets_agent.guided.request import Effort, GuidedRequest, RequestError
from ets_agent.guided.strict import strict_schema

TOOL_NAME = "guided_reasoning"

TOOL_DESCRIPTION = (
    "Answer a hard, self-contained question with guided sampling: many candidate answers are drawn and judged, and the "
    "best supported one is returned with a confidence. Use it where a single guess may be wrong: arithmetic, logic, "
    "multi-step reasoning, structured output."
)


def tool_parameters(policy: Policy, *, strict: bool = True) -> dict[str, Any]:
    """Return the JSON schema of the tool's parameters.

    Args:
        policy: What is on offer.
        strict: As OpenAI's strict mode has it: all parameters are required, and null is no answer; free objects, such
            as a JSON schema, are given as JSON text. Otherwise parameters may be left out.
    """
    about = {name: field.description or "" for name, field in GuidedRequest.model_fields.items()}
    first = next(iter(policy.offers.values()))
    properties: dict[str, Any] = {
        "question": {"type": "string", "description": about["question"]},
        "reward": {
            "anyOf": [_offer(offer, strict=strict) for offer in policy.offers.values()],
            "description": "How answers are judged: an object with the reward's ``name`` and its arguments, at most "
            f"{policy.max_reward_chars} characters in all."
            + ("" if first.needs else f" By default {first.name}, without arguments."),
        },
        "effort": {
            "type": "string",
            "enum": list(get_args(Effort)),
            "description": about["effort"] + " By default medium.",
        },
        "max_tokens": {
            "type": "integer",
            "description": f"{about['max_tokens']} At most {policy.max_tokens}.",
        },
        "timeout": {"type": "number", "description": _timeout(about["timeout"], policy)},
    }
    return _object(properties, required=["question", "reward"] if first.needs else ["question"], strict=strict)


def check_arguments(arguments: str | Mapping[str, Any], policy: Policy) -> Mapping[str, Any]:
    """Return what a model gave as the tool's arguments if they are as the schema names them.

    A request has more fields than models are told of, which are for programs.

    Args:
        arguments: An object, or its JSON text.
        policy: What is on offer.

    Raises:
        RequestError: The model's mistake, with what is allowed.
    """
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the arguments are not valid JSON: {error}") from None
    allowed = ", ".join(properties := tool_parameters(policy)["properties"])
    if not isinstance(arguments, Mapping):
        raise RequestError(f"the arguments are no object; allowed: an object with {allowed}")
    unknown = [name for name in arguments if name not in properties]
    if unknown:
        raise RequestError(f"there is no argument {unknown[0]!r:.80}; allowed: {allowed}")
    if arguments.get("question") is None:
        raise RequestError(
            "question is missing; allowed: what to answer, as text, complete in itself", field="question"
        )
    return arguments


def _offer(offer: RewardOffer, *, strict: bool) -> dict[str, Any]:
    """Return the schema of one reward, named by its ``name``."""
    properties: dict[str, Any] = {"name": {"type": "string", "enum": [offer.name]}}
    for name, schema in offer.schemas.items():
        # Definitions would not be found where references look for them, at the top of the whole schema.
        properties[name] = strict_schema(schema) if strict or "$defs" in schema else schema
    return {
        **_object(properties, required=["name", *offer.needs], strict=strict),
        "description": offer.summary,
    }


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


def _timeout(description: str, policy: Policy) -> str:
    if policy.max_seconds is None:
        return description
    return f"{description} At most {policy.max_seconds:g}, which is also the default."
