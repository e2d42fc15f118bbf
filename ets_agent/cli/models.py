"""``ets models``: what ships with the package."""

from __future__ import annotations

import json
from dataclasses import asdict

import backends
from ets_agent.cli import options
from ets_agent.cli.output import emit
from ets_agent.cli.session import session


def models_command(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """List the models that need no download."""
    with session(debug=debug):
        models = backends.available()
        if as_json:
            emit(json.dumps([asdict(model) for model in models], indent=2, ensure_ascii=False))
            return
        rows = [("MODEL", "PARAMETERS", "SIZE", "SUMMARY")]
        rows += [(model.name, f"{model.parameters:,}", _megabytes(model.size), model.summary) for model in models]
        emit(_aligned(rows))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _aligned(rows: list[tuple[str, str, str, str]]) -> str:
    """Return rows as columns; unlike a drawn table they are never cut to the width of a pipe that has none."""
    name, parameters, size = (max(len(row[column]) for row in rows) for column in range(3))
    return "\n".join(f"{row[0]:<{name}}  {row[1]:>{parameters}}  {row[2]:>{size}}  {row[3]}".rstrip() for row in rows)
