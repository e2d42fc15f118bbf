"""Specifications taken apart, and the JSON schemas of what a reward takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest

import rewards
from backends import Completion
from rewards import Reward, RewardSpecError, argument_schemas, parse, register, registry


@pytest.fixture(autouse=True)
def _registry_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))


@pytest.mark.parametrize(
    ("spec", "name", "arguments"),
    [
        ("similarity", "similarity", {}),
        (" similarity ", "similarity", {}),
        ("regex:pattern=a b", "regex", {"pattern": "a b"}),
        ({"name": "regex", "pattern": "a"}, "regex", {"pattern": "a"}),
        ('{"name": "regex", "pattern": "a"}', "regex", {"pattern": "a"}),
        (' {"name": "regex"}', "regex", {}),
        ("no such reward", "no such reward", {}),
        ("", "", {}),
    ],
)
def test_specifications_of_all_kinds_have_a_name_and_arguments(spec: Any, name: str, arguments: Any) -> None:
    assert parse(spec) == (name, arguments)


@pytest.mark.parametrize("spec", ["math_answer:gold=21", "code_consistency:inputs=[[1, 2]],entry_point=f"])
def test_what_was_parsed_builds_what_the_text_builds(spec: str) -> None:
    name, arguments = parse(spec)
    assert type(rewards.build({"name": name, **arguments})) is type(rewards.build(spec))


async def test_a_number_that_was_written_as_text_stays_text() -> None:
    name, arguments = parse("exact_match:gold=1.50")
    reward = rewards.build({"name": name, **arguments})
    assert await reward.score("q", [Completion(text="1.50"), Completion(text="1.5")]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{", "begins like a JSON object but is none"),
        ("{}", "needs its 'name' as text"),
        ("[" , None),
        ({}, "needs its 'name' as text"),
        ({"name": None}, "needs its 'name' as text"),
        ({"name": ["regex"]}, "needs its 'name' as text"),
        ("regex:", "reward 'regex': expected key=value"),
        ("regex:pattern=a,pattern=b", "'pattern' is given twice"),
        ('{"name": "a"} more', "begins like a JSON object but is none"),
        ('{"a": ' * 100_000, "begins like a JSON object but is none"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_no_specification_is_refused(spec: Any, said: str | None) -> None:
    if said is None:
        assert parse(spec) == (spec, {})
        return
    with pytest.raises(RewardSpecError, match=said):
        parse(spec)


def test_parsing_leaves_a_mapping_alone() -> None:
    spec = {"name": "regex", "pattern": "a"}
    parse(spec)[1]["pattern"] = "b"
    assert spec == {"name": "regex", "pattern": "a"}


class Widget(Reward):
    """A reward of everything."""

    def __init__(
        self,
        size: int,
        kind: Literal["a", "b"] = "a",
        *,
        table: dict[str, Any] | None = None,
        where: Path = Path("x"),
        ratio: float = float("inf"),
        judge: Callable[[str], str] | None = None,
        model: object = None,
        plain=3,  # type: ignore[no-untyped-def]
        **more: Any,
    ) -> None:
        """Make one.

        Args:
            size: How large it is,
                in lines.
            kind: Of which kind.
            plain: Anything.

        Raises:
            ValueError: Never.
        """

    async def score(self, prompt: Any, completions: Any) -> list[float | None]:
        return [0.0 for _ in completions]


def test_arguments_have_schemas_with_description_and_default() -> None:
    register("widget")(Widget)
    found = argument_schemas("widget")
    assert found["size"] == {"type": "integer", "description": "How large it is, in lines."}
    assert found["kind"] == {"type": "string", "enum": ["a", "b"], "description": "Of which kind.", "default": "a"}
    assert found["plain"] == {"description": "Anything.", "default": 3}
    assert found["table"]["default"] is None
    assert found["where"]["default"] == "x"
    assert found["ratio"]["default"] is None  # JSON has no infinity
    assert "more" not in found
    assert "self" not in found


def test_what_json_cannot_say_has_no_schema() -> None:
    register("widget")(Widget)
    assert "judge" not in argument_schemas("widget")
    assert "extractor" in argument_schemas("self_consistency"), "a function in place of one of the names is left out"


def test_options_of_a_function_are_its_arguments() -> None:
    @register("long")
    def long(completion: Completion, prompt: Any = None, *, least: int = 3) -> float:
        """Reward length.

        Args:
            completion: What is judged.
            least: From how many letters on.
        """
        return float(len(completion.text) >= least)

    assert argument_schemas("long") == {
        "least": {"type": "integer", "description": "From how many letters on.", "default": 3}
    }


def test_an_unknown_reward_has_no_schemas() -> None:
    with pytest.raises(RewardSpecError, match="no reward is called 'widgit'"):
        argument_schemas("widgit")


@pytest.mark.parametrize("name", [info.name for info in rewards.available()])
def test_every_built_in_argument_is_described(name: str) -> None:
    for argument, schema in argument_schemas(name).items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema.get("description"), argument


def test_what_a_schema_requires_the_reward_requires() -> None:
    for info in rewards.available():
        for name, schema in argument_schemas(info.name).items():
            if "default" not in schema:
                with pytest.raises(RewardSpecError, match=f"missing argument '{name}'"):
                    rewards.build(info.name)
