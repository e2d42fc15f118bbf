"""The command over the model that ships with the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ets_agent import Result
from ets_agent.evaluation import EvalReport

ROOT = Path(__file__).parents[2]
QUESTION = "Ada has 12 apples. Ada finds 24 more. How many apples does Ada have now?"


def ets(*arguments: str) -> str:
    script = "from ets_agent.cli import main; main()"
    outcome = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    return outcome.stdout


def test_solve_needs_nothing_but_the_question() -> None:
    result = Result.model_validate_json(ets("solve", QUESTION, "-M", "4", "-K", "2", "--seed", "0", "--json"))
    assert result.model == "tiny/qwen3"
    assert result.config.max_tokens == 64
    assert result.answer is not None
    assert int(result.answer) > 0


def test_eval_measures_the_model() -> None:
    output = ets("eval", "word_problems", "--method", "base", "--limit", "4", "--json")
    report = EvalReport.model_validate_json(output)
    assert (report.count, report.errors) == (4, 0)
    assert all(item.text for item in report.items)
    assert report.tokens > 0


def test_solve_takes_its_rollouts_from_a_smaller_model() -> None:
    output = ets("solve", QUESTION, "--proposal", "tiny/qwen3-small", "-M", "4", "-K", "2", "--seed", "0", "--json")
    result = Result.model_validate_json(output)
    assert (result.model, result.proposal) == ("tiny/qwen3", "tiny/qwen3-small")
    assert result.usage.scoring_tokens == result.usage.rollout_tokens > 0
    assert result.answer is not None


def test_eval_compares_ets_is_with_ets() -> None:
    output = ets("eval", "word_problems", "--method", "ets_is", "--limit", "3", "--json")
    report = EvalReport.model_validate_json(output)
    assert report.against is not None
    assert (report.method, report.proposal, report.count, report.errors) == ("ets_is", "tiny/qwen3-small", 3, 0)
    assert (report.against.method, report.against.proposal, report.against.errors) == ("ets", None, 0)
    assert report.ratio_ess is not None
    assert 0 < report.ratio_ess <= 1
    assert report.wall_time_ratio is not None
