from __future__ import annotations

import json
import re
from typing import NoReturn

import pytest

from backends import Capabilities, UnknownModelError
from backends.enumerable import EnumerableBackend
from backends.scripted import ScriptedBackend
from ets_agent import Result
from tests.cli.conftest import Ets, Loader

QUESTION = "Ada has 12 apples and finds 4 more. Ben has twice as many. How many has Ben?"


def test_the_answer_alone_goes_to_stdout(ets: Ets) -> None:
    outcome = ets("solve", QUESTION, "--seed", "1")
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (0, "32\n", "")


def test_without_an_answer_the_text_goes_to_stdout(ets: Ets, loader: Loader) -> None:
    loader.make = lambda: ScriptedBackend(["no idea"])
    assert ets("solve", QUESTION).stdout == "no idea\n"


def test_json_is_the_whole_result(ets: Ets) -> None:
    outcome = ets("solve", QUESTION, "--seed", "1", "--json")
    result = Result.model_validate_json(outcome.stdout)
    assert result.answer == "32"
    assert result.seed == 1
    assert result.steps


def test_the_same_seed_gives_the_same_result(ets: Ets) -> None:
    first, second = (json.loads(ets("solve", QUESTION, "--seed", "3", "--json").stdout) for _ in range(2))
    for result in (first, second):
        result["usage"].pop("seconds")
    assert first == second


def test_every_option_reaches_the_run(ets: Ets, loader: Loader) -> None:
    loader.make = lambda: EnumerableBackend.random(0)
    outcome = ets(
        *("solve", QUESTION, "--model", "hf/some/model", "--json", "--device", "cpu", "--dtype", "float32"),
        *("-M", "3", "-K", "2:8", "-B", "5", "--kl-coef", "0.5", "--temperature", "0.7", "--top-p", "0.9"),
        *("--top-k", "40", "--max-tokens", "20", "--stop", "a", "--stop", "b", "--seed", "5", "--timeout", "60"),
        *("--proposal", "hf/other/model", "--proposal-temperature", "1.5", "--estimator", "truncated"),
        *("--chains", "2"),
    )
    config = Result.model_validate_json(outcome.stdout).config
    options = {"device": "cpu", "dtype": "float32"}
    assert loader.calls == [("hf/some/model", options), ("hf/other/model", options)]
    assert config.model_dump(exclude_unset=True, exclude_none=True) == {
        "num_candidates": 3,
        "num_rollouts": (2, 8),
        "block_size": 5,
        "kl_coef": 0.5,
        "num_chains": 2,
        "ess_threshold": 0.5,
        "estimator": "truncated",
        "share_rollouts": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "proposal_temperature": 1.5,
        "max_tokens": 20,
        "stop": ("a", "b"),
        "seed": 5,
        "timeout": 60.0,
    }


@pytest.mark.parametrize(("text", "expected"), [("3", 3), ("2:8", (2, 8)), ("4:4", (4, 4))])
def test_rollouts_are_a_number_or_a_range(ets: Ets, text: str, expected: object) -> None:
    outcome = ets("solve", QUESTION, "-K", text, "--json")
    assert Result.model_validate_json(outcome.stdout).config.num_rollouts == expected


@pytest.mark.parametrize(("model", "expected"), [("tiny/qwen3", 64), ("hf/some/model", 512)])
def test_the_token_budget_depends_on_the_model(ets: Ets, model: str, expected: int) -> None:
    outcome = ets("solve", QUESTION, "--model", model, "--json")
    assert Result.model_validate_json(outcome.stdout).config.max_tokens == expected


def test_a_question_is_a_chat_message(ets: Ets, loader: Loader) -> None:
    ets("solve", QUESTION)
    assert loader.prompts == [[{"role": "user", "content": QUESTION}]]


def test_raw_sends_plain_text(ets: Ets, loader: Loader) -> None:
    ets("solve", QUESTION, "--raw")
    assert loader.prompts == [QUESTION]


def test_a_model_without_chat_gets_plain_text(ets: Ets, loader: Loader) -> None:
    prompts = []
    loader.make = lambda: ScriptedBackend(
        lambda prompt: prompts.append(prompt) or ["#### 1"], capabilities=Capabilities(chat=False)
    )
    assert ets("solve", QUESTION).stdout == "1\n"
    assert prompts == [QUESTION]


def test_a_dash_reads_the_question_from_stdin(ets: Ets, loader: Loader) -> None:
    outcome = ets("solve", "-", "--raw", input="Wie viele Äpfel?\n")
    assert outcome.exit_code == 0
    assert loader.prompts == ["Wie viele Äpfel?"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-p", "3"], "--top-p is 3.0"),
        (["--reward", "nope"], "no reward is called 'nope'"),
        (["--block-size", "9", "--steps", "2"], "give one of the two"),
        (["--kl-coef", "nan"], "--kl-coef is nan"),
        (["--rollouts", "many"], "--rollouts is 'many'; allowed: a number of at least 1, or a range such as 2:8"),
        (["--rollouts", "2:"], "--rollouts is '2:'"),
        (["--rollouts=-1"], "--rollouts is '-1'"),
        (["--rollouts", "0"], "--rollouts is 0; allowed: a number of at least 1, or LOW:HIGH, at least 1"),
        (["--rollouts", "8:2"], "--rollouts is 8:2"),
        (["--chains", "0"], "--chains is 0"),
        (["--estimator", "nope"], "'unbiased', 'truncated' or 'self_normalized'"),
        (["--proposal-temperature", "0.7"], "there is no proposal"),
        (["--proposal", "hf/x", "--proposal-temperature", "0"], "--proposal-temperature is 0.0"),
        (["--proposal", "hf/x", "--top-p", "0.9"], "a proposal must be able to draw every token"),
    ],
)
def test_bad_settings_are_usage_errors_before_a_model_is_loaded(
    ets: Ets, loader: Loader, arguments: list[str], message: str
) -> None:
    outcome = ets("solve", QUESTION, *arguments)
    assert outcome.exit_code == 2
    assert outcome.stderr.startswith("ets: error: ")
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert loader.calls == []


def test_the_proposal_draws_the_rollouts(ets: Ets, loader: Loader) -> None:
    reference = EnumerableBackend.random(0, letters=["1 ", "#### 3"])
    loader.make = iter([reference, reference.perturbed(0.1, seed=1)]).__next__
    outcome = ets("solve", QUESTION, "--proposal", "hf/small", "--max-tokens", "4", "--json")
    result = Result.model_validate_json(outcome.stdout)
    assert (result.model, result.proposal) == ("enumerable-0", "enumerable-0±0.1")
    assert result.usage.scoring_tokens == result.usage.rollout_tokens > 0


def test_both_models_are_closed(ets: Ets, loader: Loader, closed: list[str]) -> None:
    outcome = ets("solve", QUESTION, "--proposal", "hf/small", "--max-tokens", "4")
    assert outcome.exit_code == 0
    assert sorted(closed) == ["enumerable-0", "enumerable-0±0.1"]


def test_a_pair_that_does_not_fit_is_an_error_and_both_are_closed(ets: Ets, loader: Loader, closed: list[str]) -> None:
    loader.make = iter([loader.make(), EnumerableBackend.random(7, letters="xyz")]).__next__
    outcome = ets("solve", QUESTION, "--proposal", "hf/small")
    assert outcome.exit_code == 2
    assert "do not have the same tokenizer" in outcome.stderr
    assert sorted(closed) == ["enumerable-0", "enumerable-7"]


def test_a_proposal_that_cannot_be_loaded_closes_the_model(ets: Ets, loader: Loader, closed: list[str]) -> None:
    make = loader.make

    def fail() -> NoReturn:
        raise UnknownModelError("no model is called 'hf/small'")

    makers = iter([make, fail])
    loader.make = lambda: next(makers)()
    outcome = ets("solve", QUESTION, "--proposal", "hf/small")
    assert (outcome.exit_code, outcome.stderr) == (2, "ets: error: no model is called 'hf/small'\n")
    assert closed == ["enumerable-0"]


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_a_usage_error(ets: Ets, loader: Loader, question: str) -> None:
    outcome = ets("solve", question)
    assert outcome.exit_code == 2
    assert "empty" in outcome.stderr
    assert loader.calls == []


@pytest.mark.parametrize(("argument", "data"), [("-", b"\xff\xfe"), ("\udcff", None)])
def test_a_question_that_is_not_utf8_is_a_usage_error(ets: Ets, argument: str, data: bytes | None) -> None:
    outcome = ets("solve", argument, input=data)
    assert (outcome.exit_code, outcome.stderr) == (2, "ets: error: the question is not valid UTF-8\n")


def test_an_unknown_option_is_a_usage_error(ets: Ets) -> None:
    assert ets("solve", QUESTION, "--nope").exit_code == 2


def test_progress_shows_every_step(ets: Ets) -> None:
    outcome = ets("solve", QUESTION, "--seed", "1", "--progress", "--steps", "16")
    assert outcome.stdout == "32\n"
    assert "step 1/16, effective sample size" in outcome.stderr
    assert "step 2/16, effective sample size" in outcome.stderr
    assert "seed 1" in outcome.stderr
    assert "\x1b" not in outcome.stderr


def test_markup_and_control_characters_of_the_model_are_shown_as_they_are(ets: Ets, loader: Loader) -> None:
    loader.make = lambda: ScriptedBackend(["[red]so\x1b[2J[/nope] #### 1"])
    outcome = ets("solve", QUESTION, "--progress", "--steps", "1")
    assert outcome.exit_code == 0
    assert r"[red]so\x1b[2J[/nope]" in outcome.stderr


def test_only_the_heaviest_of_many_candidates_are_shown(ets: Ets) -> None:
    outcome = ets("solve", QUESTION, "--progress", "-M", "30", "--steps", "1")
    assert "and 20 more" in outcome.stderr
    assert ">" in outcome.stderr


def test_progress_tells_what_is_wrong_with_the_proposal(ets: Ets, loader: Loader) -> None:
    reference, proposal = [
        EnumerableBackend.from_tables({"": {"1 ": 1}, "1 ": {"#### 3": right, "#### 4": 1 - right}}, name=name)
        for name, right in (("big", 1), ("small", 0))
    ]
    loader.make = iter([reference, proposal]).__next__
    outcome = ets("solve", QUESTION, "--proposal", "hf/small", "-B", "1", "--seed", "0", "--progress")
    step = outcome.stderr[: outcome.stderr.index("step 2/")].splitlines()
    assert step[0].startswith("step 1/64, effective sample size 8.0 of 8")
    assert step[2] == "proposal outside of the reference: all 4 rollouts impossible"
    assert ", rollouts by small, seed 0" in outcome.stderr


def test_progress_tells_how_many_tokens_were_saved(ets: Ets, loader: Loader) -> None:
    loader.make = lambda: ScriptedBackend(["a b c d #### 1"])
    outcome = ets("solve", QUESTION, "--rollouts", "1:8", "--steps", "32", "--progress")
    assert re.search(r"^\d+ steps, \d+ tokens, [1-9]\d* saved, \d", outcome.stderr, re.M)
    assert "saved" not in ets("solve", QUESTION, "--progress").stderr


def test_progress_marks_the_candidates_of_all_chains(ets: Ets) -> None:
    outcome = ets("solve", QUESTION, "--chains", "12", "-M", "2", "--seed", "1", "--steps", "1", "--progress")
    lines = outcome.stderr.splitlines()
    assert sum(line.startswith(">") for line in lines) == 1
    assert sum(line.startswith("+") for line in lines) == 9  # with the chosen one, as many as are shown
    assert "+" not in ets("solve", QUESTION, "--steps", "1", "--max-tokens", "1", "--progress").stderr


def test_a_reward_that_fails_is_a_warning(ets: Ets, monkeypatch: pytest.MonkeyPatch) -> None:
    from rewards import RewardError, SelfConsistency

    async def fail(*_: object) -> list[float | None]:
        raise RewardError("the judge\nis out")

    monkeypatch.setattr(SelfConsistency, "session", lambda self: self)
    monkeypatch.setattr(SelfConsistency, "score", fail)
    outcome = ets("solve", QUESTION, "--steps", "1")
    assert outcome.exit_code == 0
    assert outcome.stderr.startswith("ets: warning: ")
    assert "the judge is out" in outcome.stderr


def test_a_run_that_is_cut_short_before_there_is_an_answer_fails(ets: Ets, loader: Loader) -> None:
    loader.make = lambda: ScriptedBackend(["a b c d"], delay=30.0)
    outcome = ets("solve", QUESTION, "--timeout", "0.01")
    assert (outcome.exit_code, outcome.stdout) == (1, "")
    assert "cut short after 0.01 s; there is no answer yet" in outcome.stderr
