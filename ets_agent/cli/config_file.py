"""``--config FILE``: a command's options from a JSON file; what is given on the command line overrides them."""

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

    The file holds one JSON object. Its keys are the options without their dashes, such as ``candidates`` or
    ``kl-coef``, or the names of those settings in `ETSConfig` that have an option, such as ``num_candidates``; ``-``
    and ``_`` are the same. The reward may be text or an object.
    """
    if path is not None:
        with session(debug=False):  # The command's own begins only when all options are read.
            values = _by_parameter(_read(path), path, context)
            parameters = {parameter.name: parameter for parameter in context.command.params}
            context.default_map = {
                name: _as_option(parameters[name], value, path) for name, value in values.items() if value is not None
            }
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the config {path} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"the config {path} must be a JSON object, not {type(values).__name__}")
    return values


def _by_parameter(values: dict[str, Any], path: Path, context: typer.Context) -> dict[str, Any]:
    """Return the values by the names that the command's parameters have in Python."""
    parameters: dict[str, str] = {}
    allowed: list[str] = []
    for parameter in context.command.params:
        if parameter.name is not None and parameter.name not in _NOT_IN_FILES:
            options = [option.removeprefix("--") for option in parameter.opts if option.startswith("--")]
            allowed += options
            parameters |= {_plain(name): parameter.name for name in (parameter.name, *options)}
    unknown = [key for key in values if _plain(key) not in parameters]
    if unknown:
        names = ", ".join(sorted(allowed))
        raise ConfigError(f"the config {path} sets {', '.join(map(repr, unknown))}; allowed: {names}")
    keys: dict[str, str] = {}
    for key in values:
        first = keys.setdefault(parameters[_plain(key)], key)
        if first != key:
            raise ConfigError(f"the config {path} sets {first!r} and {key!r}, which are the same; give one of the two")
    return {name: values[key] for name, key in keys.items()}


def _plain(key: str) -> str:
    return key.replace("-", "_")


def _as_option(parameter: Any, value: Any, path: Path) -> Any:
    """Return a value as it would stand on the command line, where the option is text there."""
    values = value if isinstance(value, list) else [value]
    if not parameter.is_flag and any(isinstance(item, bool) for item in values):  # Python would take true for 1.
        option, written = max(parameter.opts, key=len), json.dumps(value)
        raise ConfigError(f"the config {path} sets {option} to {written}; allowed: true and false for flags alone")
    if parameter.multiple:
        return values
    if parameter.name == "num_rollouts" and isinstance(value, list):
        return ":".join(map(str, value))
    if isinstance(value, dict):
        return json.dumps(value)
    return value
