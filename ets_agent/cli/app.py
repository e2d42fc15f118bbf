"""The commands under one roof."""

from __future__ import annotations

from typing import Annotated

import typer

from ets_agent import __version__
from ets_agent.cli.evaluate import evaluate_command
from ets_agent.cli.mcp import mcp_command
from ets_agent.cli.models import models_command
from ets_agent.cli.output import emit
from ets_agent.cli.rewards import rewards_command
from ets_agent.cli.serve import serve_command
from ets_agent.cli.session import session
from ets_agent.cli.solve import solve_command
from ets_agent.cli.trace import trace_command

app = typer.Typer(
    name="ets",
    help="Guided reasoning: sample the answer that reinforcement learning would have converged to, without training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("solve")(solve_command)
app.command("eval")(evaluate_command)
app.command("trace")(trace_command)
app.command("mcp")(mcp_command)
app.command("serve")(serve_command)
app.command("models")(models_command)
app.command("rewards")(rewards_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        with session(debug=False):
            emit(f"ets-agent {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass
