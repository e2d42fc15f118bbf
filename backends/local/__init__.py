"""Causal language models on this machine, through transformers; needs the extra ``local``."""

from backends.local.backend import LocalBackend

__all__ = ["LocalBackend"]
