from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import BackendError, CapabilityError, PromptError, UnknownModelError, UnreachableError
from ets_agent import ConfigError, ETSConfig
from ets_agent.cli import errors
from ets_agent.cli.names import SETTING_OPTIONS
from ets_agent.cli.output import printable
from rewards import RewardError, RewardSpecError
from tests.cli.conftest import Ets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text, ünïcödé 日本 👩‍👧", "plain text, ünïcödé 日本 👩‍👧"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("\r\x9b1m", r"\x0d\x9b1m"),
        ("a\u202eb", r"a\u202eb"),
        ("\ud800", r"\ud800"),
    ],
)
def test_only_what_steers_a_terminal_is_escaped(text: str, expected: str) -> None:
    assert printable(text) == expected


@given(st.text())
def test_nothing_that_steers_a_terminal_is_left(text: str) -> None:
    safe = printable(text)
    assert not any((ord(char) < 0x20 and char not in "\n\t") or 0x7F <= ord(char) < 0xA0 for char in safe)
    assert printable(safe) == safe


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (PromptError("x"), 2),
        (RewardSpecError("x"), 2),
        (UnknownModelError("x"), 2),
        (BackendError("x"), 1),
        (RewardError("x"), 1),
        (RuntimeError("x"), 1),
    ],
)
def test_exit_codes_tell_usage_from_failure(error: Exception, code: int) -> None:
    assert errors.exit_code(error) == code


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (BackendError("two\nlines \x1b"), r"two lines \x1b"),
        (KeyError("x"), "KeyError: 'x'"),
        (ValueError(), "ValueError"),
        (BackendError(), "BackendError"),
        (
            ConfigError("num_steps is 9; allowed: 1 to max_tokens, which is 8"),
            "--steps is 9; allowed: 1 to --max-tokens, which is 8",
        ),
        (ConfigError("num_rollouts is (3, 2)"), "--rollouts is 3:2"),
        (
            ConfigError("cannot read the config my/num_steps.json or 'top_p'"),
            "cannot read the config my/num_steps.json or 'top_p'",
        ),
        (
            UnreachableError("GET http://localhost:8000/v1/models: the connection failed"),
            "GET http://localhost:8000/v1/models: the connection failed; is a server running there? "
            "vllm/MODEL@URL and openai/MODEL@URL name another",
        ),
        (CapabilityError("so only num_steps=1 is possible"), "so only --steps 1 is possible"),
    ],
)
def test_an_error_is_one_safe_line(error: Exception, line: str) -> None:
    assert errors.describe(error) == line


@pytest.mark.parametrize("command", ["solve", "eval", "mcp", "serve"])
def test_help_speaks_of_options_alone(ets: Ets, command: str) -> None:
    text = " ".join(ets(command, "--help").stdout.replace("│", " ").split())
    assert "command-line options override it" in text
    assert not [name for name in ETSConfig.model_fields if "_" in name and name in text]
    assert "(low, high)" not in text


def test_help_names_the_options_that_belong_together(ets: Ets) -> None:
    text = " ".join(ets("solve", "--help").stdout.replace("│", " ").split())
    assert "1 with --kl-coef 0 is Best-of-N" in text
    assert "tokens per step, instead of --steps" in text
    assert "LOW:HIGH begins with low" in text


def test_every_setting_that_a_command_takes_has_its_option() -> None:
    assert set(ETSConfig.model_fields) - set(SETTING_OPTIONS) == {"ess_threshold", "share_rollouts"}
