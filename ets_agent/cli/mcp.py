"""``ets mcp``: guided reasoning for hosts that speak MCP."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from backends import Backend
from ets_agent import mcp_server
from ets_agent._hosts import is_loopback
from ets_agent.cli import errors, inputs, options, policy_options
from ets_agent.cli.session import session
from ets_agent.errors import ConfigError
from ets_agent.guided import GuidedReasoning
from ets_agent.keys import ENVIRONMENT, Keys, read_keys

_TRANSPORTS = ("stdio", "http")
_ANY_ADDRESS = ("0.0.0.0", "::", "")


def mcp_command(
    context: typer.Context,
    model: options.Model = options.DEFAULT_MODEL,
    proposal: options.Proposal = None,
    transport: Annotated[
        str,
        typer.Option(
            "--transport",
            help=f"How clients reach the server: {' or '.join(_TRANSPORTS)}.",
            autocompletion=lambda: list(_TRANSPORTS),
        ),
    ] = "stdio",
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = mcp_server.DEFAULT_HOST,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen at; 0 takes a free one.")
    ] = mcp_server.DEFAULT_PORT,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="Name of this machine, besides --host, that clients may use in addresses; repeat it for more.",
            show_default=False,
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            help=f"Keys of which clients need one, one a line, with comments after '#' at its beginning or after white "
            f"space; besides those in {ENVIRONMENT}, separated by commas.",
            show_default=False,
        ),
    ] = None,
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
    """Serve guided reasoning to agents as an MCP tool."""
    with session(debug=debug) as running:
        # All that can be wrong with the command itself is found before a model is loaded for it.
        mcp_server.check_installed()
        if transport not in _TRANSPORTS:
            raise ConfigError(f"transport is {transport!r}; allowed: {', '.join(_TRANSPORTS)}")
        settings = policy_options.reasoning_settings(context)
        keys = _keys(host, allow_host or [], api_key_file) if transport == "http" else Keys()
        with redirect_stdout(sys.stderr):  # Over stdio, stdout is the protocol's; what a library prints is not.
            backend, helper = inputs.load_models(model, proposal, device=device, dtype=dtype)

        async def main(backend: Backend, helper: Backend | None) -> None:
            async with (
                backend,
                helper or nullcontext(),
                GuidedReasoning(backend, proposal=helper, **settings) as reasoning,
            ):
                if transport == "stdio":
                    if sys.stdin.isatty():
                        _say(f"{backend.name} waits for an MCP client on stdin; Ctrl-C ends it")
                    await mcp_server.serve_stdio(reasoning)
                    return
                try:
                    await mcp_server.serve_http(
                        reasoning,
                        host=host,
                        port=port,
                        allowed_hosts=allow_host or [],
                        accepts=keys.__contains__ if keys.required else None,
                        on_start=lambda url: _say(f"{backend.name} answers MCP clients at {url}"),
                    )
                except OSError as error:
                    raise errors.CommandError(f"cannot listen at {host}, port {port}: {error.strerror}") from error

        running.run(main(backend, helper))


def _keys(host: str, names: list[str], path: Path | None) -> Keys:
    """Return the keys, without which nobody else's machine must reach the server.

    Raises:
        ConfigError: Keys are missing or cannot be read; or clients could use no name of this machine.
    """
    keys = read_keys(path, os.environ)
    if not keys.required and not is_loopback(host):
        raise ConfigError(
            f"host {host} can be reached from other machines, so keys are needed: give --api-key-file or set "
            f"{ENVIRONMENT}, or listen at 127.0.0.1"
        )
    if host in _ANY_ADDRESS and not names:
        raise ConfigError(f"host {host} is no name that clients use; give each one that they do with --allow-host")
    return keys


def _say(message: str) -> None:
    print(f"ets: {message}", file=sys.stderr, flush=True)
