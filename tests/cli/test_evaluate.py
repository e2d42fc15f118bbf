from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from backends.enumerable import EnumerableBackend
from backends.scripted import ScriptedBackend
from ets_agent.evaluation import EvalReport, word_problems
from tests.cli.conftest import Ets, Loader

ANSWERS = {problem.question: problem.solution for problem in word_problems.problems("test", 20, seed=0)}


COMPARISON = ("eval", "word_problems", "--method", "ets_is", "--limit", "3", "-B", "1", "--max-tokens", "3")


@pytest.fixture(autouse=True)
def solver(loader: Loader) -> Loader:
    """A model that knows the right answer to every problem."""
    loader.make = lambda: ScriptedBackend(lambda prompt: [ANSWERS[prompt[0]["content"]]])
    return loader


@pytest.fixture
def pair(solver: Loader) -> Loader:
    """A model that answers every problem with the right answer to the first, and a proposal for it."""
    answer = next(iter(ANSWERS.values())).rpartition("\n")[2]
    reference = EnumerableBackend.from_tables({"": {"a ": 1, "b ": 2}, "a ": {answer: 1}, "b ": {answer: 1}})
    solver.make = iter([reference, reference.perturbed(0.5, seed=1)]).__next__
    return solver


@pytest.mark.parametrize("method", ["base", "best_of_n", "ets"])
def test_every_method_is_measured(ets: Ets, method: str) -> None:
    outcome = ets("eval", "word_problems", "--method", method, "--limit", "4")
    assert outcome.exit_code == 0
    assert outcome.stderr == ""
    assert re.search(rf"^method +{method} \(", outcome.stdout, re.M)
    assert re.search(r"^accuracy +100\.0% \(95% interval 51\.0% to 100\.0%\)$", outcome.stdout, re.M)
    assert re.search(r"^correct +4 of 4$", outcome.stdout, re.M)


def test_weights_are_summarized(ets: Ets) -> None:
    outcome = ets("eval", "word_problems", "--limit", "2", "-K", "2:8", "--chains", "2")
    assert re.search(r"^method +ets \(M 8, K 2 to 8, I 4, λ 0.1, 2 chains, self_consistency\)$", outcome.stdout, re.M)
    assert re.search(r"^ESS +100\.0% of candidates$", outcome.stdout, re.M)
    assert "ratio ESS" not in outcome.stdout
    assert "wall time" not in outcome.stdout


@pytest.mark.usefixtures("pair")
def test_ets_is_is_compared_with_ets(ets: Ets) -> None:
    outcome = ets(*COMPARISON, "--concurrency", "2")
    assert outcome.exit_code == 0
    assert re.search(r"^method +ets_is \(M 8, K 4, I 3, λ 0\.1, unbiased, self_consistency\)$", outcome.stdout, re.M)
    assert re.search(r"^against +ets \(M 8, K 4, I 3, λ 0\.1, self_consistency\)$", outcome.stdout, re.M)
    assert re.search(r"^proposal +enumerable±0\.5$", outcome.stdout, re.M)
    assert re.search(r"^ +ets_is +ets$", outcome.stdout, re.M)
    assert re.search(r"^accuracy +33\.3% +33\.3%$", outcome.stdout, re.M)
    assert re.search(r"^95% interval +6\.1% to 79\.2% +6\.1% to 79\.2%$", outcome.stdout, re.M)
    assert re.search(r"^ESS +[\d.]+% of candidates +[\d.]+% of candidates$", outcome.stdout, re.M)
    assert re.search(r"^ratio ESS +[\d.]+% of rollouts +-$", outcome.stdout, re.M)
    assert re.search(r"^wall time of ets_is: [\d.]+ of ets's \(median of 2 chunks: [\d.]+\)$", outcome.stdout, re.M)


@pytest.mark.usefixtures("pair")
def test_json_carries_both_methods(ets: Ets) -> None:
    report = EvalReport.model_validate_json(ets(*COMPARISON, "--json").stdout)
    assert report.against is not None
    assert (report.method, report.against.method, report.against.count) == ("ets_is", "ets", 3)
    assert (report.proposal, report.against.proposal) == ("enumerable±0.5", None)
    assert report.wall_time_ratio is not None


def test_the_embedded_model_has_a_proposal(ets: Ets, pair: Loader) -> None:
    ets(*COMPARISON, "--device", "cpu", "--dtype", "float32")
    options = {"device": "cpu", "dtype": "float32"}
    assert pair.calls == [("tiny/qwen3", options), ("tiny/qwen3-small", options)]


def test_a_proposal_that_is_named_takes_the_place_of_the_default(ets: Ets, pair: Loader) -> None:
    ets(*COMPARISON, "--proposal", "hf/small")
    assert [name for name, _ in pair.calls] == ["tiny/qwen3", "hf/small"]


def test_only_methods_that_use_a_proposal_get_one(ets: Ets, solver: Loader) -> None:
    ets("eval", "word_problems", "--against", "base", "--limit", "1")
    assert [name for name, _ in solver.calls] == ["tiny/qwen3"]


def test_the_partner_may_be_the_one_that_uses_the_proposal(ets: Ets, pair: Loader) -> None:
    outcome = ets(*COMPARISON, "--method", "base", "--against", "ets_is", "--json")
    report = EvalReport.model_validate_json(outcome.stdout)
    assert report.against is not None
    assert (report.proposal, report.against.proposal) == (None, "enumerable±0.5")


@pytest.mark.usefixtures("pair")
def test_a_comparison_can_be_turned_off(ets: Ets) -> None:
    outcome = ets(*COMPARISON, "--against", "none")
    assert outcome.exit_code == 0
    assert "against" not in outcome.stdout
    assert re.search(r"^proposal +enumerable±0\.5$", outcome.stdout, re.M)
    assert re.search(r"^ratio ESS +[\d.]+% of rollouts$", outcome.stdout, re.M)


@pytest.mark.usefixtures("pair")
def test_progress_counts_the_problems_of_both_methods(ets: Ets) -> None:
    outcome = ets(*COMPARISON, "--progress")
    assert "6/6" in outcome.stderr
    assert "ets_is 33.3%, ets 33.3%" in outcome.stderr


def test_both_models_are_closed(ets: Ets, closed: list[str]) -> None:
    assert ets(*COMPARISON).exit_code == 0
    assert sorted(closed) == ["enumerable-0", "enumerable-0±0.1"]


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


def test_failures_in_a_comparison_are_told_by_method(ets: Ets, solver: Loader) -> None:
    def respond(prompt: list[dict[str, str]]) -> list[str]:
        if prompt[0]["content"] == next(iter(ANSWERS)):
            raise OSError("the line is dead")
        return [ANSWERS[prompt[0]["content"]]]

    solver.make = lambda: ScriptedBackend(respond)
    outcome = ets("eval", "word_problems", "--method", "ets", "--against", "base", "--limit", "4")
    assert outcome.exit_code == 0
    assert outcome.stderr.splitlines() == [
        f"ets: warning: 1 of 4 problems of {method} failed and count as wrong; the first: OSError: the line is dead"
        for method in ("ets", "base")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "there is no problem set 'nope' and no such file; allowed: word_problems, or a file of JSON lines"),
        (["nope.jsonl"], "cannot read the problems nope.jsonl: No such file or directory"),
        ([""], "there is no problem set '' and no such file; allowed: word_problems, or"),
        (["x" * 300], "xxx' and no such file; allowed: word_problems, or"),
        (["x" * 300 + ".jsonl"], "xxx.jsonl: File name too long"),
        (["."], "cannot read the problems .: Is a directory"),
        ([__file__], f"{__file__}, line 1: this is no JSON"),
        (["word_problems", "--method", "nope"], "allowed: base, best_of_n, ets, ets_is"),
        (["word_problems", "--against", "nope"], "there is no method 'nope'"),
        (["word_problems", "--method", "ets_is", "--model", "hf/x"], "method ets_is needs a proposal, --proposal"),
        (["word_problems", "--proposal", "hf/x"], "method ets takes no proposal; allowed: with ets_is"),
        (["word_problems", "--method", "base", "--against", "ets", "--proposal", "hf/x"], "base or ets takes no"),
        (["word_problems", "--proposal-temperature", "0.7"], "there is no proposal"),
        (["word_problems", "--method", "ets_is", "--top-p", "0.9"], "a proposal must be able to draw every token"),
        (["word_problems", "--estimator", "nope"], "'unbiased', 'truncated' or 'self_normalized'"),
        (["word_problems", "--rollouts", "many"], "a range such as 2:8"),
        (["word_problems", "--method", "ets", "--n", "3"], "n is 3"),
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


def test_a_file_of_problems_is_a_problem_set(ets: Ets, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    lines = [json.dumps({"question": question, "answer": answer}) for question, answer in ANSWERS.items()]
    file.write_text("\n\n".join(lines))
    outcome = ets("eval", str(file), "--method", "base", "--limit", "3", "--json")
    report = EvalReport.model_validate_json(outcome.stdout)
    assert (report.benchmark, report.count, report.correct) == (str(file), 3, 3)
    assert [item.question for item in report.items] == list(ANSWERS)[:3]
    assert all(item.gold.isdigit() for item in report.items)
