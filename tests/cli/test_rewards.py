from __future__ import annotations

import json

import pytest

from ets_agent import Result
from rewards import register, registry
from tests.cli.conftest import Ets

QUESTION = "Ada has 12 apples and finds 4 more. Ben has twice as many. How many has Ben?"


def test_rewards_are_listed_with_their_arguments(ets: Ets) -> None:
    entries = ets("rewards").stdout.split("\n\n")
    names = [entry.splitlines()[0] for entry in entries]
    assert names == sorted(names)
    assert {"self_consistency", "math_answer", "regex"} <= set(names)
    assert entries[names.index("exact_match")].splitlines() == [
        "exact_match",
        "    Reward 1 for responses that are a given text, 0 for others; an oracle.",
        "      gold: str | list[str]",
        "      ignore_case: bool = False",
    ]


def test_one_reward_is_described(ets: Ets) -> None:
    shown = ets("rewards", "exact_match").stdout
    assert shown.startswith("exact_match\n    Reward 1")
    assert "Args:\n    gold: The right answer" in shown


def test_rewards_are_listed_as_json(ets: Ets) -> None:
    infos = {info["name"]: info for info in json.loads(ets("rewards", "--json").stdout)}
    assert infos["choice"]["parameters"] == [
        {"name": "gold", "declaration": "gold: str", "required": True},
        {"name": "options", "declaration": "options: int = 4", "required": False},
    ]


def test_an_unknown_reward_is_one_line(ets: Ets) -> None:
    outcome = ets("rewards", "self_consistancy")
    assert outcome.exit_code == 2
    assert outcome.stderr.startswith("ets: error: no reward is called 'self_consistancy'; did you mean")


@pytest.mark.parametrize("spec", ["math_answer:gold=8", '{"name": "math_answer", "gold": 8}'])
def test_the_reward_is_one_option(ets: Ets, spec: str) -> None:
    result = Result.model_validate_json(ets("solve", QUESTION, "--reward", spec, "--seed", "1", "--json").stdout)
    assert (result.answer, result.reward) == ("8", 1.0)


def test_a_reward_made_for_a_command_is_closed(ets: Ets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    closed = []

    @register("held")
    class Held(registry.FunctionReward):
        def __init__(self) -> None:
            super().__init__(lambda completion: 1.0)

        async def aclose(self) -> None:
            closed.append(self)

    assert ets("solve", QUESTION, "--reward", "held").exit_code == 0
    assert len(closed) == 1
