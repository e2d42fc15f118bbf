"""``ets mcp``: guided reasoning for hosts that speak MCP."""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import AbstractAsyncContextManager, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from backends.endpoints.addresses import shown
from ets_agent import mcp_server
from ets_agent.cli import inputs, options, policy_options
from ets_agent.cli.session import session
from ets_agent.errors import ConfigError
from ets_agent.guided import GuidedReasoning
from ets_agent.keys import ENVIRONMENT, Keys, read_keys

_TRANSPORTS = ("stdio", "http")
_HTTP_OPTIONS = ("host", "port", "allow_host", "api_key_file")


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
            help="Name of this machine, besides --host, that clients without keys may use in addresses; repeat it.",
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
        http = transport == "http"
        keys = read_keys(api_key_file, os.environ) if http else Keys()
        _check_transport(context, transport)
        names = [host, *(allow_host or [])]
        loading = threading.Event()

        def load() -> AbstractAsyncContextManager[GuidedReasoning]:
            loading.set()
            try:
                with redirect_stdout(sys.stderr):  # Over stdio, stdout is the protocol's; what a library prints is not.
                    backend, helper = inputs.load_models(model, proposal, device=device, dtype=dtype)
                return inputs.opened(backend, helper, settings)
            finally:
                loading.clear()

        if http:
            with mcp_server.bind(host, port, keys=keys.required) as listener:
                running.run(_serve_http(load(), listener, keys=keys, hosts=names))
        else:
            if sys.stdin.isatty():
                _say(f"{shown(model)} waits for an MCP client on stdin; Ctrl-C ends it")
            policy, config = settings["policy"], settings["config"]
            running.run(
                mcp_server.serve_stdio(mcp_server.Loading(policy=policy, config=config, model=shown(model), load=load))
            )
            if loading.is_set():  # The client did not wait, and the thread cannot be stopped.
                running.end(0)


async def _serve_http(
    opened: AbstractAsyncContextManager[GuidedReasoning], listener: socket.socket, *, keys: Keys, hosts: list[str]
) -> None:
    async with opened as reasoning:
        await mcp_server.serve_http(
            reasoning,
            listener,
            keys=keys,
            hosts=hosts,
            on_ready=lambda url: _say(f"{reasoning.backend.name} answers MCP clients at {url}"),
        )


def _check_transport(context: typer.Context, transport: str) -> None:
    """Refuse options that would have no effect, such as keys that would guard nothing.

    Raises:
        ConfigError: There is one.
    """
    for name in _HTTP_OPTIONS if transport != "http" else ():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ConfigError(f"--{name.replace('_', '-')} is for --transport http")


def _say(message: str) -> None:
    print(f"ets: {message}", file=sys.stderr, flush=True)
