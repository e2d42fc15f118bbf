"""The tool's schema, whatever is on offer, is one that OpenAI's strict mode takes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel

import rewards
from backends import Completion, Prompt
from backends.scripted import ScriptedBackend
from ets_agent import GuidedReasoning, Policy, RewardOffer
from ets_agent.adapters import openai_tools
from ets_agent.guided.policy import _CALLER_ARGUMENTS
from rewards import Reward, registry
from tests.adapters.conftest import ARGUMENTS
from tests.adapters.strict import check_tool


class Case(BaseModel):
    given: str
    wanted: dict[str, int]


class Odd(Reward):
    """Takes all that an argument may be, and rewards nothing."""

    def __init__(
        self,
        cases: list[Case],
        pairs: list[tuple[int, str]],
        table: dict[str, Any] | None = None,
        kind: Literal["only"] = "only",
        mixed: Literal["a", 1] = "a",
        limit: int | None = None,
        free: Any = None,
        bare=None,  # type: ignore[no-untyped-def]
        names: Sequence[str] = ("x",),
        where: Path | None = Path("x"),
    ) -> None:
        self.given = (cases, pairs, table, kind, mixed, limit, free, bare, list(names))

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        return [0.0 for _ in completions]


NAMES = ["cases", "pairs", "table", "kind", "mixed", "limit", "free", "bare", "names", "where"]


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> RewardOffer:
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    rewards.register("odd")(Odd)
    return RewardOffer(name="odd", arguments=tuple(NAMES))


def offered(name: str) -> RewardOffer:
    """Return the offer of a reward in which the operator fixes what it needs and callers cannot give."""
    theirs = _CALLER_ARGUMENTS.get(name, ())
    needed = [each.name for each in rewards.describe(name).parameters if each.required and each.name not in theirs]
    lists = {"rewards": ["similarity"], "weights": [1.0]}
    return RewardOffer(name=name, reward={"name": name, **{each: lists.get(each, "the operator's") for each in needed}})


def function(policy: Policy) -> dict[str, Any]:
    reasoning = GuidedReasoning(ScriptedBackend(["a"]), policy=policy)
    tool: dict[str, Any] = openai_tools.tool(reasoning)["function"]
    return tool


@pytest.mark.parametrize("name", [info.name for info in rewards.available()])
def test_every_reward_offered_by_name_has_a_strict_schema(name: str) -> None:
    check_tool(function(Policy(rewards=[offered(name)])))


def test_all_rewards_together_have_one() -> None:
    check_tool(function(Policy(rewards=[offered(info.name) for info in rewards.available()])))


def test_arguments_of_any_type_have_one(odd: RewardOffer) -> None:
    check_tool(function(Policy(rewards=[odd])))


def test_the_checker_sees_what_is_wrong() -> None:
    good = function(Policy())
    for change in (
        {"additionalProperties": True},
        {"required": ["question"]},
        {"properties": {**good["parameters"]["properties"], "more": {"type": "string"}}},
        {"minProperties": 1},
        {"type": ["object", "null"]},
    ):
        with pytest.raises(AssertionError):
            check_tool({**good, "parameters": {**good["parameters"], **change}})
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(10):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"], "additionalProperties": False}
    with pytest.raises(AssertionError, match="10 levels"):
        check_tool({**good, "parameters": deep})


def test_the_agents_sdk_has_nothing_to_add_to_it(odd: RewardOffer) -> None:
    from agents.strict_schema import ensure_strict_json_schema

    schema = function(Policy(rewards=[odd, "code_tests", "json_schema"]))["parameters"]
    assert ensure_strict_json_schema(json.loads(json.dumps(schema))) == schema


def test_what_strict_mode_cannot_say_is_given_as_json_text(odd: RewardOffer) -> None:
    schema = function(Policy(rewards=[odd]))["parameters"]
    given = {
        "name": "odd",
        "cases": '[{"given": "a", "wanted": {"b": 1}}]',
        "pairs": '[[1, "x"]]',
        "table": '{"a": [1]}',
        "kind": "only",
        "mixed": "1",
        "limit": None,
        "free": '{"deep": null}',
        "bare": "just text",
        "names": ["y"],
        "where": None,
    }
    jsonschema.validate({**ARGUMENTS, "reward": given}, schema)
    built = rewards.build(odd.spec({key: value for key, value in given.items() if key != "name"}))
    assert isinstance(built, Odd)
    assert built.given == (
        [Case(given="a", wanted={"b": 1})], [(1, "x")], {"a": [1]}, "only", 1, None, {"deep": None}, "just text", ["y"],
    )  # fmt: skip


def test_without_strict_mode_arguments_are_what_they_are_and_may_be_left_out(odd: RewardOffer) -> None:
    reasoning = GuidedReasoning(ScriptedBackend(["a"]), policy=Policy(rewards=["similarity", odd, "json_schema"]))
    tool = openai_tools.tool(reasoning, strict=False)["function"]
    assert tool["strict"] is False
    assert "$ref" not in json.dumps(tool)  # It would look for definitions at the top of the schema.
    jsonschema.Draft202012Validator.check_schema(tool["parameters"])
    jsonschema.validate({"question": "q"}, tool["parameters"])
    reward: dict[str, Any] = {"name": "json_schema", "schema": {"type": "object"}}
    jsonschema.validate({"question": "q", "reward": reward}, tool["parameters"])
    assert asyncio.run(reasoning(question="q", reward=reward)).text == "a"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"question": "q", "reward": {"name": "code_tests"}}, tool["parameters"])


@pytest.mark.parametrize("strict", [True, False])
def test_the_schema_is_json(odd: RewardOffer, strict: bool) -> None:
    policy = Policy(rewards=[odd, *(offered(info.name) for info in rewards.available() if info.name != "odd")])
    schema = GuidedReasoning(ScriptedBackend(["a"]), policy=policy).parameters(strict=strict)
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema
