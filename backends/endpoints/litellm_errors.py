"""What litellm's errors mean here: which are worth another try, which are no failure of the endpoint, and no keys."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import httpx
import openai

from backends.endpoints.litellm_client import litellm
from backends.endpoints.statuses import may_pass, retry_after
from backends.errors import BackendError, CapabilityError, ContextLengthError, EndpointError, MissingExtraError

_SECRET = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS)$", re.IGNORECASE)
"""Names of settings that are not to be shown."""
_HOLDERS = re.compile(r"^(?:extra_|default_)?headers$|CREDENTIALS", re.IGNORECASE)
"""Names of settings in which nothing is to be shown."""
_SCHEME = re.compile(r"^(?:Bearer|Basic|Token|Key) +", re.IGNORECASE)
"""What stands before the key in a header; some providers repeat the key alone."""
_SHORTEST_SECRET = 8
"""Shorter settings of that kind are placeholders, and words of ordinary messages."""
_LONGEST_MESSAGE = 500
_NO_KEY = re.compile(r"missing credentials|(?:api|access)[_ ]?key.{0,60}(?:must be set|is missing|is required)", re.I)
_CLASSES = re.compile(r"^(?:(?:litellm\.)?\w*Error: )+")
"""Names of errors, which litellm puts before a message; where the connection failed, it says InternalServerError."""
_ADVICE = " To drop "
"""Where litellm begins to say how a refused parameter could be ignored."""


def translated(error: Exception, request: str, *, timeout: float, secrets: Iterable[str]) -> BackendError:
    """Return the error to raise for one of litellm's.

    Args:
        error: What litellm raised.
        request: Names the request, for the message.
        timeout: Seconds that it might take.
        secrets: Keys that the message must not contain, besides those of the environment.
    """
    if isinstance(error, ImportError):
        return MissingExtraError(f"{request}: this provider needs {error.name}: pip install {error.name}")
    message = _clean(_CLASSES.sub("", " ".join(str(error).split())), secrets)
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
        return EndpointError(f"{request}: {message}", retryable=True)
    text = f"{request}: the provider answered {status}: {message}"
    if status in {401, 403}:
        text += "; check the key (the argument api_key, or the provider's environment variable)"
    if status == 404:
        text += "; check the model's name and the address"
    return EndpointError(text, status=status, retryable=_retryable(error, status), retry_after=retry_after(headers))


def secrets_of(settings: Mapping[str, Any]) -> list[str]:
    """Return what is secret among settings, and among those within them, going by their names."""
    found = [part for value in _secrets("", settings) for part in (value, _SCHEME.sub("", value))]
    return [value for value in found if len(value) >= _SHORTEST_SECRET]


def _secrets(name: str, value: object, *, held: bool = False) -> Iterator[str]:
    """Yield the secrets of a setting; all that it holds are, where it is held by one of which nothing is shown."""
    held = held or _HOLDERS.search(name) is not None
    if isinstance(value, str):
        if held or _SECRET.search(name):
            yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _secrets(str(key), inner, held=held)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _secrets(name, inner, held=held)


def _clean(text: str, secrets: Iterable[str]) -> str:
    """Return a provider's text without keys, which some repeat in their messages."""
    # Of litellm's own settings, which are all that its module holds, only those are looked into that are sent.
    own = {name: value for name, value in vars(litellm).items() if isinstance(value, str) or name == "headers"}
    known = {*secrets, *secrets_of(os.environ), *secrets_of(own)}
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, "(key)")
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "…"


def _headers(error: openai.OpenAIError) -> Mapping[str, str]:
    """Return the headers of the provider's answer; litellm has them in one of two places, and none where none came."""
    response = getattr(error, "response", None)
    return httpx.Headers(getattr(response, "headers", None) or getattr(error, "litellm_response_headers", None))


def _status(error: openai.OpenAIError, *, answered: bool) -> int | None:
    """Return the HTTP status of the answer; litellm makes one up where the connection failed."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) and (answered or status != 500) else None


def _retryable(error: openai.OpenAIError, status: int) -> bool:
    if "insufficient_quota" in f"{getattr(error, 'code', '')} {error}":  # A 429 that waiting does not help.
        return False
    return may_pass(status)
