"""``--config FILE``: a command's options from a JSON file; what is given on the command line goes before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer

from ets_agent.cli.session import session
from ets_agent.errors import ConfigError

_NOT_IN_FILES = {"config_file", "help", "question", "benchmark", "debug"}


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the values of a file the defaults of the command's other options; called by the parser.

    The file holds one JSON object. Its keys are the settings of `ETSConfig`, ``model``, ``proposal``, ``reward`` (as
    text or as an object) and the command's other options, with ``_`` for ``-``.
    """
    if path is not None:
        with session(debug=False):  # The command's own begins only when all options are read.
            allowed = {parameter.name or "" for parameter in context.command.params} - _NOT_IN_FILES
            values = _read(path, sorted(allowed))
            context.default_map = {name: _as_option(name, value) for name, value in values.items() if value is not None}
    return path


def _read(path: Path, allowed: list[str]) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the config {path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"the config {path} must be a JSON object, not {type(values).__name__}")
    unknown = [name for name in values if name not in allowed]
    if unknown:
        raise ConfigError(f"the config {path} sets {', '.join(map(repr, unknown))}; allowed: {', '.join(allowed)}")
    return values


def _as_option(name: str, value: Any) -> Any:
    """Return a value as it would stand on the command line, where the option is text there."""
    if name == "num_rollouts" and isinstance(value, list):
        return ":".join(map(str, value))
    if isinstance(value, dict):
        return json.dumps(value)
    return value
