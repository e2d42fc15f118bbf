"""What can go wrong between the library and a language model: one flat vocabulary."""

from __future__ import annotations

from typing import Any, TypeVar

E = TypeVar("E", bound=BaseException)


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


class EndpointError(BackendError):
    """A request to a model's server failed.

    Attributes:
        status: HTTP status of the answer, where there was one.
        retryable: Whether the same request may succeed if it is sent again.
        retry_after: Seconds after which the server wants to be asked again, where it said so.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        """Keep what a retry has to know; the message names the request."""
        super().__init__(message)
        self.status = status
        self.retryable = retryable
        self.retry_after = retry_after


class UnreachableError(EndpointError):
    """A model's server could not be connected to, broke the connection, or gave no first answer."""


class UnusableDrawError(EndpointError):
    """A server's draw is no answer, such as one that a content filter has ended; another one would be no fair draw."""


class QueueFullError(BackendError):
    """Too much work is waiting for a place already; nothing was sent."""


class BudgetExceededError(BackendError):
    """The tokens that were allowed are used up; nothing was sent."""


def restated(error: E, message: str, **changes: Any) -> E:
    """Return an error of the same type and with the same attributes, but for some, that says something else."""
    # Not through its constructor, which may want other arguments in a class of its own.
    other = type(error).__new__(type(error), message)
    other.__dict__.update(vars(error), **changes)
    return other
