"""Backends by name: ``"tiny/qwen3"`` or ``"hf/ID_OR_PATH"``. Importing this module loads no model and no torch."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from importlib.resources import files
from inspect import signature
from pathlib import Path
from typing import Any

from backends.base import Backend
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

    Args:
        name: ``tiny/…`` is a model that ships with the package (`available` lists them), ``hf/ID_OR_PATH`` any causal
            language model from the Hugging Face hub or a folder.
        **options: For local models ``device``, ``dtype``, ``max_rows`` and more, see `backends.local.LocalBackend`.

    Raises:
        UnknownModelError: No backend has this name, or no checkpoint is there.
        MissingExtraError: The packages that it needs are not installed.
    """
    if not isinstance(name, str):
        raise UnknownModelError(f"a model is given by name, not as {type(name).__name__}")
    if name in _EMBEDDED:
        return _load_local(embedded_path(name), name, options)
    kind, _, rest = name.partition("/")
    if kind == "hf" and rest:
        return _load_local(rest, name, options)
    close = difflib.get_close_matches(name, _EMBEDDED, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise UnknownModelError(f"no model is called {name!r}{hint} Allowed: {', '.join(_EMBEDDED)}, or hf/ID_OR_PATH")


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
        if error.name is None or error.name.partition(".")[0] not in {"torch", "transformers", "safetensors"}:
            raise
        raise MissingExtraError(
            f"{name} runs on this machine and needs {error.name}: pip install 'ets-agent[local]'"
        ) from error
    allowed = set(signature(LocalBackend.from_pretrained).parameters) - {"source", "name"}
    if unknown := options.keys() - allowed:
        raise BackendError(f"{name} takes no option {sorted(unknown)[0]!r}; allowed: {', '.join(sorted(allowed))}")
    return LocalBackend.from_pretrained(source, name=name, **options)
