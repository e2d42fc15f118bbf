"""Opening a checkpoint: device, precision, tokenizer, end-of-sequence tokens, context length."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils import logging

from backends.errors import BackendError, UnknownModelError


def open_checkpoint(
    source: str | Path, *, device: str, dtype: str | torch.dtype, revision: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer from the hub or a folder.

    Args:
        source: Hub id or folder.
        device: ``auto`` (CUDA, then MPS, then CPU), or any torch device.
        dtype: ``auto`` (the checkpoint's own, float32 on a CPU), or a torch dtype by name.
        revision: Branch, tag or commit on the hub.

    Raises:
        UnknownModelError: There is no checkpoint.
        BackendError: It cannot be used here.
    """
    target = choose_device(device)
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise UnknownModelError(f"cannot load a model from {source}: the folder has no config.json")
    try:
        with _quiet(local=Path(source).is_dir()):
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=choose_dtype(dtype, target), **options)
    except OSError as error:
        raise UnknownModelError(f"cannot load a model from {source}: {_first_line(error)}") from error
    except Exception as error:  # Damaged files and unknown architectures raise almost anything.
        raise BackendError(f"cannot load {source}: {type(error).__name__}: {_first_line(error)}") from error
    _check_cache(model)
    try:
        torch.nn.Module.to(model, target)
    except Exception as error:
        raise BackendError(f"cannot move {source} to {target}: {_first_line(error)}") from error
    return model.train(False), tokenizer


def choose_device(name: str) -> torch.device:
    """Return a torch device; ``auto`` is the best one there is."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise BackendError(f"device is {name!r}; allowed: auto, cpu, cuda, cuda:N, mps") from None


def choose_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype | str:
    """Return a torch dtype, also by name; ``auto`` is the checkpoint's own, but float32 on a CPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if isinstance(name, torch.dtype):
        return name
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise BackendError(f"dtype is {name!r}; allowed: auto, float32, bfloat16, float16")
    return dtype


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return every token that ends a sequence: the generation config's and the tokenizer's."""
    generation = getattr(model, "generation_config", None)
    listed = getattr(generation, "eos_token_id", None)
    ids = set(listed) if isinstance(listed, list | tuple) else {listed}
    return frozenset(int(token) for token in {*ids, tokenizer.eos_token_id} if token is not None)


def context_length(model: PreTrainedModel) -> int | None:
    """Return the most positions that the model knows, or None where it has no limit."""
    length = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(length) if length else None


def _check_cache(model: PreTrainedModel) -> None:
    """Refuse models whose memory is not made of keys and values alone: prefixes could not be shared."""
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    foreign = kinds - {DynamicLayer, DynamicSlidingWindowLayer}
    if foreign:
        names = ", ".join(sorted(kind.__name__ for kind in foreign))
        raise BackendError(
            f"{type(model).__name__} keeps state that cannot be shared between continuations ({names}); "
            "only models with key-value attention caches can run here"
        )


@contextmanager
def _quiet(*, local: bool) -> Iterator[None]:
    """Keep transformers' progress bars off the terminal where there is no download to watch."""
    shown = logging.is_progress_bar_enabled()
    if local:
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
