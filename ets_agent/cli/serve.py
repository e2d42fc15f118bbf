"""``ets serve``: guided reasoning behind OpenAI's API."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backends import Backend
from ets_agent._serving import MAX_ANSWERS, MAX_BODY, SHUTDOWN_SECONDS
from ets_agent.cli import inputs, options, policy_options
from ets_agent.cli.session import GRACE, session
from ets_agent.keys import ENVIRONMENT, Keys, read_keys

if TYPE_CHECKING:
    from ets_agent.server import Limits

_PANEL = "What one caller may have"


def serve_command(
    context: typer.Context,
    model: options.Model = options.DEFAULT_MODEL,
    proposal: options.Proposal = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="Name of this machine, besides --host, that callers without keys may use in addresses; repeat it.",
            show_default=False,
        ),
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            "--served-model-name",
            metavar="NAME",
            help="What callers name the model, besides its own name; repeat it for more. Replies say the first.",
            show_default=False,
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            help=f"Keys of which callers need one, one a line, with comments after '#' at its beginning or after white "
            f"space; besides those in {ENVIRONMENT}, separated by commas.",
            show_default=False,
        ),
    ] = None,
    rate_limit: Annotated[
        int | None,
        typer.Option(
            "--rate-limit", min=1, metavar="PER_MINUTE", help="Most answers begun in a minute.", rich_help_panel=_PANEL
        ),
    ] = None,
    key_concurrency: Annotated[
        int | None,
        typer.Option("--key-concurrency", min=1, help="Most answers at the same time.", rich_help_panel=_PANEL),
    ] = None,
    max_answers: Annotated[
        int, typer.Option("--max-answers", min=1, help="Most answers of one request (n).", rich_help_panel=_PANEL)
    ] = MAX_ANSWERS,
    max_body: Annotated[
        int,
        typer.Option("--max-body", min=1, metavar="BYTES", help="Largest body of a request.", rich_help_panel=_PANEL),
    ] = MAX_BODY,
    shutdown_timeout: Annotated[
        float,
        typer.Option(
            "--shutdown-timeout",
            min=0,
            metavar="SECONDS",
            help="How long answers in the making may go on after SIGTERM or Ctrl-C; a second one ends all at once.",
        ),
    ] = SHUTDOWN_SECONDS,
    allow_reward: policy_options.AllowReward = None,
    max_candidates: policy_options.MaxCandidates = None,
    max_rollouts: policy_options.MaxRollouts = None,
    max_steps: policy_options.MaxSteps = None,
    max_tokens: policy_options.MaxTokens = None,
    max_seconds: policy_options.MaxSeconds = None,
    max_token_budget: policy_options.MaxTokenBudget = None,
    concurrency: policy_options.Concurrency = policy_options.DEFAULT_CONCURRENCY,
    queue: policy_options.Queue = policy_options.DEFAULT_QUEUE,
    traces: policy_options.Traces = None,
    kl_coef: options.KlCoef = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    proposal_temperature: options.ProposalTemperature = None,
    estimator: options.Estimator = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    config_file: options.Config = None,
    debug: options.Debug = False,
) -> None:
    """Serve guided reasoning behind OpenAI's API, until SIGTERM or Ctrl-C."""
    with session(debug=debug) as running:
        # All that can be wrong with the command itself is found before a model is loaded for it.
        from ets_agent.server import CLOSING_SECONDS, Limits, bind

        logging.basicConfig(format="ets: %(levelname)s: %(message)s", level=logging.WARNING)
        settings = policy_options.reasoning_settings(context)
        limits = Limits(rate=rate_limit, key_concurrency=key_concurrency, max_answers=max_answers, max_body=max_body)
        keys = read_keys(api_key_file, os.environ)
        with bind(host, port, keys=keys.required) as listener:
            backend, helper = inputs.load_models(model, proposal, device=device, dtype=dtype)
            names, hosts = served_model_name or [], [host, *(allow_host or [])]
            running.grace = shutdown_timeout + CLOSING_SECONDS + GRACE
            serving = _serve(
                backend,
                helper,
                settings,
                listener,
                keys=keys,
                limits=limits,
                names=names,
                hosts=hosts,
                shutdown_timeout=shutdown_timeout,
            )
            with suppress(asyncio.CancelledError):
                running.run(serving)
            running.exit_code = 0  # Signals are how a server ends.


async def _serve(
    backend: Backend,
    proposal: Backend | None,
    settings: dict[str, Any],
    listener: socket.socket,
    *,
    keys: Keys,
    limits: Limits,
    names: list[str],
    hosts: list[str],
    shutdown_timeout: float,
) -> None:
    from ets_agent.server import create_app, serve

    async with inputs.opened(backend, proposal, settings) as reasoning:
        app = create_app(reasoning, keys=keys, limits=limits, names=names, hosts=hosts)
        await serve(
            app,
            listener,
            shutdown_timeout=shutdown_timeout,
            on_ready=lambda url: print(f"ets: {backend.name} answers at {url}/v1", file=sys.stderr, flush=True),
        )
