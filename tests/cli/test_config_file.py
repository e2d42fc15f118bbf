"""``--config FILE``: options from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ets_agent import Result
from tests.cli.conftest import Ets, Loader

QUESTION = "Ada has 12 apples and finds 4 more. Ben has twice as many. How many has Ben?"


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def write(values: Any) -> str:
        path = tmp_path / "run.json"
        path.write_text(values if isinstance(values, str) else json.dumps(values))
        return str(path)

    return write


def test_a_file_sets_options_and_the_command_line_overrides_it(ets: Ets, loader: Loader, file: Any) -> None:
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


def test_a_single_stop_string_needs_no_list(ets: Ets, file: Any) -> None:
    outcome = ets("solve", QUESTION, "-c", file({"stop": "ab", "seed": 1}), "--json")
    assert Result.model_validate_json(outcome.stdout).config.stop == ("ab",)


def test_the_reward_of_a_file_may_be_text(ets: Ets, file: Any) -> None:
    outcome = ets("solve", QUESTION, "-c", file({"reward": "math_answer:gold=18", "seed": 1}))
    assert outcome.stdout == "18\n"


def test_eval_takes_a_file_too(ets: Ets, file: Any) -> None:
    outcome = ets("eval", "word_problems", "-c", file({"limit": 2, "method": "base"}), "--json", "--no-progress")
    assert json.loads(outcome.stdout)["count"] == 2


@pytest.mark.parametrize("dash", ["-", "_"])
def test_options_have_the_names_that_they_have_on_the_command_line(ets: Ets, file: Any, dash: str) -> None:
    values = {
        "candidates": 3,
        "rollouts": "1:2",
        "kl-coef": 0.5,
        "max-tokens": 20,
        "chains": 2,
        "json": True,
        "progress": True,
    }
    outcome = ets("solve", QUESTION, "-c", file({name.replace("-", dash): value for name, value in values.items()}))
    config = Result.model_validate_json(outcome.stdout).config
    assert (config.num_candidates, config.num_rollouts, config.kl_coef) == (3, (1, 2), 0.5)
    assert (config.max_tokens, config.num_chains) == (20, 2)
    assert "effective sample size" in outcome.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"nope": 3, "Seed": 1}, "sets 'nope', 'Seed'; allowed: block-size, candidates, chains, device, "),
        ({"candidates": 3, "num_candidates": 3}, "sets 'candidates' and 'num_candidates', which are the same; give"),
        ({"top-p": 1, "top_p": None}, "sets 'top-p' and 'top_p', which are the same"),
        ({"as_json": True, "json": True}, "sets 'as_json' and 'json'"),
        ({"question": "q"}, "sets 'question'; allowed: "),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ([1], "must be a JSON object, not list"),
        ({"reward": {"name": "nope"}}, "no reward is called 'nope'"),
        ({"num_rollouts": [3, 2]}, "--rollouts is 3:2"),
        ({"num_rollouts": [True, 2]}, "sets --rollouts to [true, 2]; allowed: true and false for flags alone"),
        ({"candidates": True}, "sets --candidates to true; allowed: true and false for flags alone"),
        ({"seed": False}, "sets --seed to false; allowed"),
        ({"timeout": True}, "sets --timeout to true; allowed"),
        ({"kl-coef": True}, "sets --kl-coef to true; allowed"),
        ({"stop": [True]}, "sets --stop to [true]; allowed"),
        ({"ess_threshold": 0.5}, "sets 'ess_threshold'; allowed: "),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_file_is_said(ets: Ets, file: Any, content: Any, message: str) -> None:
    outcome = ets("solve", QUESTION, "--config", file(content))
    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    assert message in outcome.stderr


def test_a_missing_file_is_one_line(ets: Ets) -> None:
    outcome = ets("solve", QUESTION, "--config", "no/such.json")
    assert (outcome.exit_code, outcome.stderr) == (
        2,
        "ets: error: cannot read the config no/such.json: No such file or directory\n",
    )
