from __future__ import annotations

import json

import pytest

from backends import Capabilities
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
    outcome = ets(
        *("solve", QUESTION, "--model", "hf/some/model", "--json", "--device", "cpu", "--dtype", "float32"),
        *("-M", "3", "-K", "2", "-B", "5", "--kl-coef", "0.5", "--temperature", "0.7", "--top-p", "0.9"),
        *("--top-k", "40", "--max-tokens", "20", "--stop", "a", "--stop", "b", "--seed", "5", "--timeout", "60"),
    )
    config = Result.model_validate_json(outcome.stdout).config
    assert loader.calls == [("hf/some/model", {"device": "cpu", "dtype": "float32"})]
    assert config.model_dump(exclude_unset=True, exclude_none=True) == {
        "num_candidates": 3,
        "num_rollouts": 2,
        "block_size": 5,
        "kl_coef": 0.5,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 40,
        "max_tokens": 20,
        "stop": ("a", "b"),
        "seed": 5,
        "timeout": 60.0,
    }


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
        (["--top-p", "3"], "top_p is 3.0"),
        (["--reward", "nope"], "no reward is called 'nope'"),
        (["--block-size", "9", "--steps", "2"], "give one of the two"),
        (["--kl-coef", "nan"], "kl_coef is nan"),
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


def test_a_run_that_is_cut_short_says_so(ets: Ets, loader: Loader) -> None:
    loader.make = lambda: ScriptedBackend(["a b c d"], delay=30.0)
    outcome = ets("solve", QUESTION, "--timeout", "0.01")
    assert outcome.exit_code == 0
    assert "cut short after 0.01 s" in outcome.stderr
