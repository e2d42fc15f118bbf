"""What a command works on: the models, opened, and the question, as it is put to them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import typer

import backends
from backends import Backend, Prompt
from backends.endpoints.addresses import shown
from ets_agent.cli.output import printable
from ets_agent.errors import ConfigError
from ets_agent.guided import GuidedReasoning


def load_models(
    model: str,
    proposal: str | None,
    *,
    device: str | None,
    dtype: str | None,
    note: Callable[[str], None] | None = None,
) -> tuple[Backend, Backend | None]:
    """Open the reference and the proposal, if there is one, with those of the options that were given.

    Args:
        model: Name of the reference.
        proposal: Name of the proposal.
        device: Option of local models.
        dtype: Option of local models.
        note: Called with what is waited for; by default a terminal on stderr is told.

    Raises:
        BackendError: A model is unknown or cannot be loaded; nothing is left open then.
    """
    options = {key: value for key, value in (("device", device), ("dtype", dtype)) if value is not None}
    tell = note or _tell
    tell(f"loading {shown(model)}")
    backend = backends.load(model, **options)
    if proposal is None:
        return backend, None
    try:
        tell(f"loading {shown(proposal)}")
        return backend, backends.load(proposal, **options)
    except Exception:
        asyncio.run(backend.aclose())
        raise


@asynccontextmanager
async def opened(
    backend: Backend, proposal: Backend | None, settings: Mapping[str, Any]
) -> AsyncGenerator[GuidedReasoning]:
    """Give the tool over models, and close all of them in the end.

    Args:
        backend: The reference.
        proposal: The proposal.
        settings: The other arguments of `GuidedReasoning`.
    """
    async with backend, proposal or nullcontext(), GuidedReasoning(backend, proposal=proposal, **settings) as reasoning:
        yield reasoning


def prompt_from(question: str, *models: Backend | None, raw: bool) -> Prompt:
    """Return a question as one chat message, or as plain text where that is wanted or all that a model takes."""
    if raw or not all(model.capabilities.chat for model in models if model is not None):
        return question
    return [{"role": "user", "content": question}]


def read_question(argument: str) -> str:
    """Return the question: the argument itself, or all of stdin for ``-``.

    Raises:
        ConfigError: It is not valid UTF-8.
    """
    try:
        # Bytes of an argument that are not UTF-8 arrive as lone surrogates, which no tokenizer takes.
        data = typer.get_binary_stream("stdin").read() if argument == "-" else argument.encode("utf-8")
        return data.decode("utf-8").rstrip("\n")
    except UnicodeError as error:
        raise ConfigError("the question is not valid UTF-8") from error


def _tell(what: str) -> None:
    """Say what takes its time, to whoever sits there: a model's server that is not there is asked for seconds."""
    if sys.stderr.isatty():
        print(f"ets: {printable(what)}", file=sys.stderr, flush=True)
