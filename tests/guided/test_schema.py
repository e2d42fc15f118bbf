"""The tool's schema says what the policy allows, and what it says is allowed."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from backends.scripted import ScriptedBackend
from ets_agent import GuidedReasoning, Policy, RewardOffer
from ets_agent.guided.strict import sayable, strict_schema

EXAMPLES: dict[str, dict[str, Any]] = {
    "choice": {"gold": "B", "options": 3},
    "code_consistency": {"inputs": [[1]], "prompt": None, "entry_point": "f"},
    "code_tests": {"test": "assert f(1) == 1", "prompt": None, "entry_point": None},
    "exact_match": {"gold": ["a", "b"], "ignore_case": True},
    "json_schema": {"schema": {"type": "object"}},
    "math_answer": {"gold": 42},
    "regex": {"pattern": "^a", "ignore_case": None, "full": True},
    "self_consistency": {"extractor": "choice"},
    "similarity": {},
}
STRICT: dict[str, dict[str, Any]] = EXAMPLES | {
    "code_consistency": EXAMPLES["code_consistency"] | {"inputs": ["f(1)"]},
    "json_schema": {"schema": '{"type": "object"}'},
}
POLICY = Policy(rewards=list(EXAMPLES), max_tokens=99, max_seconds=7)


def tool(policy: Policy) -> GuidedReasoning:
    return GuidedReasoning(ScriptedBackend(["a"]), policy=policy)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", EXAMPLES)
def test_what_the_schema_allows_the_tool_takes(name: str, strict: bool) -> None:
    reasoning = tool(POLICY)
    request = {
        "question": "q",
        "reward": {"name": name, **(STRICT if strict else EXAMPLES)[name]},
        "effort": "low",
        "max_tokens": 99,
        "timeout": 7,
    }
    schema = reasoning.parameters(strict=strict)
    if not strict and any(value is None for value in request["reward"].values()):  # type: ignore[attr-defined]
        request["reward"] = {key: value for key, value in request["reward"].items() if value is not None}  # type: ignore[attr-defined]
    jsonschema.validate(request, schema)
    reasoning.plan(request)


def test_models_are_told_of_the_policys_own_ceiling() -> None:
    told = tool(Policy(max_reward_chars=777)).parameters()["properties"]["reward"]
    assert "at most 777 characters in all" in told["description"]
    assert "100,000" not in json.dumps(told)


def test_null_is_as_good_as_nothing_in_strict_mode() -> None:
    request = {"question": "q", "reward": None, "effort": None, "max_tokens": None, "timeout": None}
    reasoning = tool(Policy())
    jsonschema.validate(request, reasoning.parameters())
    assert reasoning.plan(request).config == reasoning.plan("q").config
    jsonschema.validate({"question": "q"}, reasoning.parameters(strict=False))


def test_exactly_the_offers_of_the_policy_are_in_it() -> None:
    policy = Policy(rewards=[RewardOffer(name="house", reward="similarity", description="House rules."), "regex"])
    branches = tool(policy).parameters()["properties"]["reward"]["anyOf"]
    assert branches[-1] == {"type": "null"}
    assert [branch["properties"]["name"]["enum"] for branch in branches[:-1]] == [["house"], ["regex"]]
    assert branches[0]["description"] == "House rules."
    assert "code_tests" not in str(tool(Policy()).parameters())


def test_it_tells_limits_and_defaults() -> None:
    properties = tool(POLICY).parameters()["properties"]
    assert "At most 99." in properties["max_tokens"]["description"]
    assert "At most 7, which is also the default." in properties["timeout"]["description"]
    own = tool(Policy()).parameters()["properties"]
    assert "By default self_consistency, without arguments." in own["reward"]["description"]
    assert "At most" not in tool(Policy(max_seconds=None)).parameters()["properties"]["timeout"]["description"]


@pytest.mark.parametrize("strict", [True, False])
def test_a_reward_has_to_be_named_where_the_first_one_needs_arguments(strict: bool) -> None:
    schema = tool(Policy(rewards=["json_schema", "similarity"])).parameters(strict=strict)
    assert "reward" in schema["required"]
    assert {"type": "null"} not in schema["properties"]["reward"]["anyOf"]
    assert "By default" not in schema["properties"]["reward"]["description"]


def test_a_schema_is_made_anew_so_that_nobody_changes_anothers() -> None:
    reasoning = tool(POLICY)
    for strict in (True, False):
        reasoning.parameters(strict=strict)["properties"]["reward"]["anyOf"].clear()
        assert reasoning.parameters(strict=strict)["properties"]["reward"]["anyOf"]


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "integer", "minimum": 1, "default": 3}, {"type": "integer"}),
        ({"type": "string", "const": "a"}, {"type": "string", "enum": ["a"]}),
        ({"type": "array", "items": {"type": "number", "minimum": 1}}, {"type": "array", "items": {"type": "number"}}),
        (
            {"anyOf": [{"type": "object"}, {"type": "string"}, {"type": "null"}], "title": "T"},
            {"anyOf": [{"type": "string"}, {"type": "null"}]},
        ),
    ],
    ids=str,
)  # fmt: skip
def test_strict_mode_keeps_what_it_understands(schema: dict[str, Any], said: dict[str, Any]) -> None:
    assert sayable(schema)
    assert strict_schema(schema) == said


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "array"},
        {"type": "array", "items": {"type": "object"}},
        {"type": "array", "prefixItems": [{"type": "string"}], "items": False},
        {"anyOf": [{"type": "object"}, {"type": "null"}]},
        {"$ref": "#/$defs/X", "$defs": {"X": {"type": "string"}}},
        {"enum": ["a", 1]},
    ],
    ids=str,
)
def test_json_text_stands_for_what_strict_mode_cannot_say(schema: dict[str, Any]) -> None:
    assert not sayable(schema)
    assert strict_schema({**schema, "description": "D."}) == {"type": "string", "description": "D. As JSON text."}
