"""How a failure is told on the command line: one line on stderr and an exit code."""

from __future__ import annotations

import sys
import traceback

from backends import (
    BackendError,
    CapabilityError,
    PromptError,
    TokenizerMismatchError,
    UnknownModelError,
    UnreachableError,
)
from ets_agent.cli.names import in_options
from ets_agent.cli.output import printable
from ets_agent.errors import ConfigError
from ets_agent.traces import TraceError
from rewards import RewardError, RewardSpecError

FAILURE = 1
"""Exit code of a run that failed."""
USAGE = 2
"""Exit code of a command that cannot be carried out as it was given."""


class CommandError(Exception):
    """A command came to an end without what it is for; the message says why."""


_USAGE_ERRORS = (ConfigError, PromptError, RewardSpecError, TokenizerMismatchError, TraceError, UnknownModelError)
_EXPECTED_ERRORS = (CommandError, ConfigError, BackendError, RewardError, TraceError)
_ABOUT_SETTINGS = (CapabilityError, ConfigError, PromptError)


def exit_code(error: Exception) -> int:
    """Return the exit code for an error."""
    return USAGE if isinstance(error, _USAGE_ERRORS) else FAILURE


def describe(error: Exception) -> str:
    """Return an error as one line that is safe on a terminal.

    The errors of this library speak for themselves; others are given with their type, without which a message such as
    that of a `KeyError` says nothing.
    """
    text = " ".join(str(error).split())
    if isinstance(error, _ABOUT_SETTINGS):
        text = in_options(text)
    if isinstance(error, UnreachableError):
        text += "; is a server running there? vllm/MODEL@URL and openai/MODEL@URL name another"
    if not isinstance(error, _EXPECTED_ERRORS):
        kind = type(error).__name__
        text = f"{kind}: {text}" if text else kind
    return printable(text or type(error).__name__)


def report(error: Exception, *, debug: bool) -> None:
    """Print an error on stderr as one line, below its traceback where ``debug`` asks for one."""
    if debug:
        traceback.print_exception(error)
    print(f"ets: error: {describe(error)}", file=sys.stderr)


def warn(message: str) -> None:
    """Print a warning on stderr as one line."""
    print(f"ets: warning: {printable(' '.join(message.split()))}", file=sys.stderr)
