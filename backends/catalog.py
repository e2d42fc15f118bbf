"""Backends by name: ``"tiny/qwen3"``, ``"hf/ID_OR_PATH"``, ``"vllm/MODEL@URL"``, … Importing this loads no model."""

from __future__ import annotations

import asyncio
import difflib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from inspect import signature
from pathlib import Path
from typing import Any

from backends._pool_opening import connect_pool
from backends.base import Backend
from backends.concurrency import run_in_thread
from backends.endpoints import addresses
from backends.errors import BackendError, MissingExtraError, UnknownModelError

_EMBEDDED = {"tiny/qwen3": "qwen3", "tiny/qwen3-small": "qwen3-small"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """One embedded model.

    Attributes:
        name: What `load` takes.
        parameters: Number of weights.
        size: Bytes of the weights on disk.
        summary: What it is for.
    """

    name: str
    parameters: int
    size: int
    summary: str


def load(name: str, **options: Any) -> Backend:
    """Open a backend by name.

    A model behind a server is asked at once what it can do; within a running event loop, `connect` does not block it.

    Args:
        name: One of

            - ``tiny/…``: a model that ships with the package (`available` lists them).
            - ``hf/ID_OR_PATH``: any causal language model from the Hugging Face hub or a folder.
            - ``vllm/MODEL@URL``: a vLLM server, by default ``http://localhost:8000/v1``; the key is that of
              ``VLLM_API_KEY``. Several addresses, with commas between them, make a `Pool`; servers that are down join
              it later, unless all are.
            - ``openai/MODEL`` or ``openai/MODEL@URL``: any server that speaks OpenAI's protocol; the key is that of
              ``OPENAI_API_KEY``, the address that of ``OPENAI_BASE_URL``, or OpenAI's own.
            - ``litellm/PROVIDER/MODEL``: any provider of litellm, with the keys that it reads from the environment.
        **options: For local models ``device``, ``dtype``, ``max_rows`` and more, see `backends.local.LocalBackend`; for
            servers ``api_key``, ``retries``, ``max_concurrency``, ``timeout``, ``connect_timeout`` (30 s for the first
            answer) and more, see `backends.openai.OpenAIBackend.connect`.

    Raises:
        UnknownModelError: No backend has this name, or no checkpoint is there.
        MissingExtraError: The packages that it needs are not installed.
        EndpointError: The server cannot be reached.
    """
    if not isinstance(name, str):
        raise UnknownModelError(f"a model is given by name, not as {type(name).__name__}")
    if name in _EMBEDDED:
        return _load_local(embedded_path(name), name, options)
    kind, _, rest = name.partition("/")
    if rest and kind in _SERVERS:
        return run_in_thread(_connect_servers(kind, rest, options))
    if rest and kind in _OTHERS:
        return _OTHERS[kind](rest, options)
    close = difflib.get_close_matches(name, _EMBEDDED, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise UnknownModelError(
        f"no model is called {addresses.shown(name)!r}{hint} Allowed: {', '.join(_EMBEDDED)}, hf/ID_OR_PATH, "
        "vllm/MODEL@URL, openai/MODEL, litellm/PROVIDER/MODEL"
    )


async def connect(name: str, **options: Any) -> Backend:
    """Open a backend by name without blocking the event loop; arguments and errors as for `load`.

    Cancelling it closes the connections to a server; a local model goes on loading in its thread, and is dropped.
    """
    kind, _, rest = name.partition("/") if isinstance(name, str) else ("", "", "")
    if rest and kind in _SERVERS:
        return await _connect_servers(kind, rest, options)
    return await asyncio.to_thread(load, name, **options)


def available() -> list[ModelInfo]:
    """Return the models that ship with the package."""
    return [_describe(name) for name in _EMBEDDED]


def embedded_path(name: str) -> Path:
    """Return the checkpoint folder of a model that ships with the package."""
    return Path(str(files("backends") / "models" / _EMBEDDED[name]))


def _describe(name: str) -> ModelInfo:
    folder = embedded_path(name)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    size = (folder / "model.safetensors").stat().st_size
    return ModelInfo(name=name, parameters=card["parameters"], size=size, summary=card["summary"])


def _load_local(source: str | Path, name: str, options: dict[str, Any]) -> Backend:
    try:
        from backends.local import LocalBackend
    except ModuleNotFoundError as error:
        raise _missing(error, name, "local", {"torch", "transformers", "safetensors"}) from error
    _check_options(name, options, signature(LocalBackend.from_pretrained).parameters, {"source", "name"})
    return LocalBackend.from_pretrained(source, name=name, **options)


def _load_hf(source: str, options: dict[str, Any]) -> Backend:
    return _load_local(source, f"hf/{source}", options)


async def _connect_servers(kind: str, rest: str, options: dict[str, Any]) -> Backend:
    model, urls = addresses.split(rest)
    name = addresses.shown(f"{kind}/{rest}")
    from backends.openai import OpenAIBackend, connect_openai, connect_vllm

    _check_options(name, options, signature(OpenAIBackend.connect).parameters, {"model", "base_url", "name"})
    connect_one = connect_vllm if kind == "vllm" else connect_openai
    if len(urls) < 2:
        return await connect_one(model, urls[0] if urls else None, name=name, **options)
    names = [addresses.shown(f"{kind}/{model}@{url}") for url in urls]
    return await connect_pool(
        [(name, partial(connect_one, model, url, name=name, **options)) for name, url in zip(names, urls, strict=True)]
    )


def _load_litellm(model: str, options: dict[str, Any]) -> Backend:
    name = f"litellm/{model}"
    try:
        from backends.litellm import LiteLLMBackend
    except ModuleNotFoundError as error:
        raise _missing(error, name, "litellm", {"litellm"}) from error
    _check_options(name, options, signature(LiteLLMBackend).parameters, {"model", "name"})
    return LiteLLMBackend(model, name=name, **options)


_SERVERS = frozenset({"vllm", "openai"})
"""Kinds that are asked what they can do when they are opened."""
_OTHERS: dict[str, Callable[[str, dict[str, Any]], Backend]] = {"hf": _load_hf, "litellm": _load_litellm}
"""Kinds that are opened without a request."""


def _check_options(name: str, options: dict[str, Any], known: Iterable[str], own: set[str]) -> None:
    allowed = set(known) - own
    if unknown := options.keys() - allowed:
        raise BackendError(f"{name} takes no option {sorted(unknown)[0]!r}; allowed: {', '.join(sorted(allowed))}")


def _missing(error: ModuleNotFoundError, name: str, extra: str, packages: set[str]) -> ImportError:
    """Return what to raise where a module is not installed: the command, if it is one of an extra's packages."""
    if error.name is None or error.name.partition(".")[0] not in packages:
        return error
    return MissingExtraError(f"{name} needs {error.name}: pip install 'ets-agent[{extra}]'")
