from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ets_agent import Result
from rewards import register, registry
from tests.cli.conftest import Ets, Loader

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


class TestConfig:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Any:
        def write(values: Any) -> str:
            path = tmp_path / "run.json"
            path.write_text(values if isinstance(values, str) else json.dumps(values))
            return str(path)

        return write

    def test_a_file_sets_options_and_the_command_line_goes_before_it(self, ets: Ets, loader: Loader, file: Any) -> None:
        values = {
            "model": "hf/some/model",
            "reward": {"name": "math_answer", "gold": 8},
            "num_candidates": 3,
            "num_rollouts": [1, 2],
            "kl_coef": 0.5,
            "stop": ["x", "y"],
            "seed": 3,
            "timeout": None,
        }
        outcome = ets("solve", QUESTION, "--config", file(values), "--seed", "4", "--json")
        result = Result.model_validate_json(outcome.stdout)
        assert loader.calls == [("hf/some/model", {})]
        assert result.reward == float(result.answer == "8"), "not a vote, which 32 would win"
        config = result.config
        assert (config.num_candidates, config.num_rollouts, config.kl_coef) == (3, (1, 2), 0.5)
        assert (config.stop, config.seed, config.timeout) == (("x", "y"), 4, None)

    def test_the_reward_of_a_file_may_be_text(self, ets: Ets, file: Any) -> None:
        outcome = ets("solve", QUESTION, "-c", file({"reward": "math_answer:gold=18", "seed": 1}))
        assert outcome.stdout == "18\n"

    def test_eval_takes_a_file_too(self, ets: Ets, file: Any) -> None:
        outcome = ets("eval", "word_problems", "-c", file({"limit": 2, "method": "base"}), "--json", "--no-progress")
        assert json.loads(outcome.stdout)["count"] == 2

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"candidates": 3}, "sets 'candidates'; allowed: "),
            ({"question": "q"}, "sets 'question'; allowed: "),
            ("{", "is no JSON"),
            ("[" * 100_000, "is no JSON"),
            ([1], "must be a JSON object, not list"),
            ({"reward": {"name": "nope"}}, "no reward is called 'nope'"),
            ({"num_rollouts": [3, 2]}, "num_rollouts is (3, 2)"),
        ],
        ids=str,
    )
    def test_what_is_wrong_with_a_file_is_said(self, ets: Ets, file: Any, content: Any, message: str) -> None:
        outcome = ets("solve", QUESTION, "--config", file(content))
        assert outcome.exit_code == 2
        assert outcome.stdout == ""
        assert message in outcome.stderr

    def test_a_missing_file_is_one_line(self, ets: Ets) -> None:
        outcome = ets("solve", QUESTION, "--config", "no/such.json")
        assert (outcome.exit_code, outcome.stderr) == (
            2,
            "ets: error: cannot read the config no/such.json: No such file or directory\n",
        )
