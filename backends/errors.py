"""What can go wrong between the library and a language model: one flat vocabulary."""

from __future__ import annotations


class BackendError(Exception):
    """A backend could not do what it was asked; the base of all errors of this package."""


class CapabilityError(BackendError):
    """The backend lacks something that the requested settings need, such as continuing a prefix."""


class TokenizerMismatchError(CapabilityError):
    """Two models cannot exchange tokens, because their tokenizers differ."""


class UnknownModelError(BackendError, ValueError):
    """No backend answers to this model name."""


class MissingExtraError(BackendError, ImportError):
    """A feature needs packages that are not installed; the message gives the pip command."""


class PromptError(BackendError, ValueError):
    """The prompt or the sampling parameters cannot be used, for example an empty prompt."""


class ContextLengthError(PromptError):
    """Prompt and budget together do not fit into the model's context window."""


class BackendClosedError(BackendError):
    """The backend was used after `aclose`."""
