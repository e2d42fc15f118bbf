"""``ets rewards``: what can judge."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

import rewards
from ets_agent.cli import options
from ets_agent.cli.output import emit
from ets_agent.cli.session import session
from rewards import RewardInfo


def rewards_command(
    name: Annotated[str | None, typer.Argument(help="Show this reward alone.", show_default=False)] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """List the rewards, those of plugins included, with their arguments."""
    with session(debug=debug):
        infos = rewards.available() if name is None else [rewards.describe(name)]
        if as_json:
            emit(json.dumps([asdict(info) for info in infos], indent=2, ensure_ascii=False))
        elif name is None:
            emit("\n\n".join(map(_entry, infos)))
        else:
            emit(f"{_entry(infos[0])}\n\n{infos[0].description}".rstrip())


def _entry(info: RewardInfo) -> str:
    """Return a reward's name with its summary and its arguments, each on a line of its own."""
    return "\n".join(
        [info.name, f"    {info.summary}".rstrip(), *(f"      {each.declaration}" for each in info.parameters)]
    )
