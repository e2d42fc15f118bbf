"""What litellm's errors mean here: which are worth another try, which are no failure of the endpoint, and no keys."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping

import httpx
import openai

from backends.endpoints import statuses
from backends.endpoints.litellm_module import litellm
from backends.endpoints.secrets import secrets_of
from backends.errors import (
    BackendError,
    CapabilityError,
    ContextLengthError,
    EndpointError,
    MissingExtraError,
    UnreachableError,
)

_NO_KEY = re.compile(r"missing credentials|(?:api|access)[_ ]?key.{0,60}(?:must be set|is missing|is required)", re.I)
_CLASSES = re.compile(r"^(?:(?:litellm\.)?\w*Error: )+")
"""Names of errors, which litellm puts before a message; where the connection failed, it says InternalServerError."""
_ADVICE = " To drop "
"""Where litellm begins to say how a refused parameter could be ignored."""


def translated(error: Exception, request: str, *, timeout: float, clean: Callable[[str], str]) -> BackendError:
    """Return the error to raise for one of litellm's.

    Args:
        error: What litellm raised.
        request: Names the request, for the message.
        timeout: Seconds that it might take.
        clean: Returns a text of the provider's as it can be shown.
    """
    if isinstance(error, ImportError):
        return MissingExtraError(f"{request}: this provider needs {error.name}: pip install {error.name}")
    message = _CLASSES.sub("", clean(str(error)))
    if isinstance(error, litellm.exceptions.UnsupportedParamsError):
        return CapabilityError(f"{request}: {message.split(_ADVICE)[0]}")
    if isinstance(error, litellm.exceptions.ContextWindowExceededError):
        return ContextLengthError(f"{request}: {message}")
    if isinstance(error, litellm.exceptions.Timeout):
        return EndpointError(f"{request}: no answer within {timeout:g} s", retryable=True)
    if not isinstance(error, openai.OpenAIError):
        return EndpointError(f"{request}: litellm failed: {type(error).__name__}: {message}")
    headers = _headers(error)
    status = _status(error, answered=bool(headers))
    if status is None or status < 400:
        # Where nothing, or nothing legible, was answered, litellm says 500, or 200.
        if _NO_KEY.search(message):
            return EndpointError(f"{request}: {message}; give the key as api_key, or in the provider's variable")
        kind = UnreachableError if _unconnected(error) else EndpointError
        return kind(f"{request}: {message}", retryable=True)
    return statuses.failure(
        f"{request}: the provider answered {status}: {message}",
        status,
        headers=headers,
        code=f"{getattr(error, 'code', '')} {error}",
        key_hint="the argument api_key, or the provider's environment variable",
    )


def known_secrets(given: Iterable[str]) -> set[str]:
    """Return some secrets together with those of the environment and of litellm's own settings."""
    # Of all that litellm's module holds, only those are looked into that are sent.
    own = {name: value for name, value in vars(litellm).items() if isinstance(value, str) or name == "headers"}
    return {*given, *secrets_of(os.environ), *secrets_of(own)}


def _headers(error: openai.OpenAIError) -> Mapping[str, str]:
    """Return the headers of the provider's answer; litellm has them in one of two places, and none where none came."""
    response = getattr(error, "response", None)
    return httpx.Headers(getattr(response, "headers", None) or getattr(error, "litellm_response_headers", None))


def _status(error: openai.OpenAIError, *, answered: bool) -> int | None:
    """Return the HTTP status of the answer; litellm makes one up where the connection failed."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) and (answered or status != 500) else None


def _unconnected(error: openai.OpenAIError) -> bool:
    """Whether the connection failed: litellm shows that neither by class nor by status, but by what it came from."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, OSError | httpx.TransportError):
        link = link.__cause__ or link.__context__
    return link is not None
