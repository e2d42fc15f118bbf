from __future__ import annotations

import re

import pytest

from backends.scripted import ScriptedBackend
from ets_agent.evaluation import EvalReport, word_problems
from tests.cli.conftest import Ets, Loader

ANSWERS = {problem.question: problem.solution for problem in word_problems.problems("test", 20, seed=0)}


@pytest.fixture(autouse=True)
def solver(loader: Loader) -> Loader:
    """A model that knows the right answer to every problem."""
    loader.make = lambda: ScriptedBackend(lambda prompt: [ANSWERS[prompt[0]["content"]]])
    return loader


@pytest.mark.parametrize("method", ["base", "best_of_n", "ets"])
def test_every_method_is_measured(ets: Ets, method: str) -> None:
    outcome = ets("eval", "word_problems", "--method", method, "--limit", "4")
    assert outcome.exit_code == 0
    assert outcome.stderr == ""
    assert re.search(rf"^method +{method} \(", outcome.stdout, re.M)
    assert re.search(r"^accuracy +100\.0% \(95% interval 51\.0% to 100\.0%\)$", outcome.stdout, re.M)
    assert re.search(r"^correct +4 of 4$", outcome.stdout, re.M)


def test_json_is_the_whole_report(ets: Ets) -> None:
    outcome = ets("eval", "word_problems", "--method", "best_of_n", "--n", "3", "--limit", "2", "--json")
    report = EvalReport.model_validate_json(outcome.stdout)
    assert (report.benchmark, report.method, report.count, report.correct) == ("word_problems", "best_of_n", 2, 2)
    assert report.config.num_candidates == 3


def test_progress_goes_to_stderr(ets: Ets) -> None:
    outcome = ets("eval", "word_problems", "--method", "base", "--limit", "3", "--progress")
    assert "3/3" in outcome.stderr
    assert "3/3" not in outcome.stdout


def test_some_failures_are_a_warning(ets: Ets, solver: Loader) -> None:
    def respond(prompt: list[dict[str, str]]) -> list[str]:
        if prompt[0]["content"] == next(iter(ANSWERS)):
            raise OSError("the line is dead")
        return [ANSWERS[prompt[0]["content"]]]

    solver.make = lambda: ScriptedBackend(respond)
    outcome = ets("eval", "word_problems", "--method", "base", "--limit", "4")
    assert outcome.exit_code == 0
    assert re.search(r"^correct +3 of 4, 1 failed$", outcome.stdout, re.M)
    assert outcome.stderr == (
        "ets: warning: 1 of 4 problems failed and count as wrong; the first: OSError: the line is dead\n"
    )


def test_a_measurement_of_failures_only_is_a_failure(ets: Ets, solver: Loader) -> None:
    def respond(prompt: object) -> list[str]:
        raise OSError("the line is dead")

    solver.make = lambda: ScriptedBackend(respond)
    outcome = ets("eval", "word_problems", "--limit", "2")
    assert outcome.exit_code == 1
    assert outcome.stderr.startswith("ets: error: 2 of 2 problems failed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "there is no problem set 'nope'"),
        (["word_problems", "--method", "nope"], "allowed: base, best_of_n, ets"),
        (["word_problems", "--method", "best_of_n", "--n", "0"], "n is 0"),
        (["word_problems", "--seed", "-1"], "seed is -1"),
        (["word_problems", "--reward", "nope"], "no reward is called 'nope'"),
        (["word_problems", "--limit", "0"], "limit"),
        (["word_problems", "--concurrency", "0"], "concurrency"),
    ],
)
def test_bad_arguments_are_usage_errors_before_a_model_is_loaded(
    ets: Ets, solver: Loader, arguments: list[str], message: str
) -> None:
    outcome = ets("eval", *arguments)
    assert outcome.exit_code == 2
    assert message in outcome.stderr
    assert solver.calls == []


def test_samples_are_for_best_of_n_only(ets: Ets) -> None:
    outcome = ets("eval", "word_problems", "--method", "ets", "--n", "3", "--limit", "1")
    assert outcome.exit_code == 2
    assert "n is 3" in outcome.stderr
