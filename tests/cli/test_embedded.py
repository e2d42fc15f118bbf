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
