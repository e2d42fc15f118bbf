"""Sends requests to an OpenAI-style server: retried, with errors that name the request and show no key."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import openai
from pydantic import SecretStr

from backends.endpoints.addresses import credentials, shown, valid
from backends.endpoints.per_loop import PerLoop
from backends.endpoints.statuses import may_pass, retry_after
from backends.errors import BackendClosedError, BackendError, ContextLengthError, EndpointError
from backends.retries import RetryPolicy

T = TypeVar("T")

_TOO_LONG = ("context_length_exceeded", "maximum context length", "maximum model length", "context window")
_LONGEST_MESSAGE = 500


class Malformed(ValueError):  # noqa: N818 - never leaves the package
    """An answer that came through but cannot be used; raised by whoever reads it."""


class Client:
    """Connections to one server.

    A client may be used from several event loops, one after the other or at once: each has connections of its own,
    which end with it.

    Args:
        base_url: Address of the API, such as ``http://localhost:8000/v1``; ``http://USER:PASSWORD@…`` sends these
            instead of a key.
        api_key: Sent as bearer token; None where the server asks for none.
        key_hint: What to check when the server refuses the key, for messages.
        retries: What is tried again, how often and for how long.
        timeout: Seconds that a single try may take.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: SecretStr | None,
        key_hint: str,
        retries: RetryPolicy,
        timeout: float,
    ) -> None:
        """Connect to nothing yet."""
        if not valid(base_url):
            raise BackendError(f"the address {shown(base_url)!r} is no http:// or https:// URL, or has a query")
        # Out of the address, which HTTP libraries log.
        user = credentials(base_url)
        if user is not None and api_key is not None:
            raise BackendError(f"the address {shown(base_url)} has a user, and there is a key; only one can be sent")
        self._base_url = shown(base_url).rstrip("/")
        self._secret = SecretStr(user) if user is not None else api_key
        self._basic = user is not None
        self._key_hint = key_hint
        self._retries = retries
        self._timeout = timeout
        self._connections = PerLoop(self._sdk, openai.AsyncOpenAI.close)
        self._closed = False

    @property
    def url(self) -> str:
        """The address."""
        return self._base_url

    async def post(self, path: str, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        """Send a request, and return what `read` makes of the answer.

        Args:
            path: Below the address, such as ``/completions``; ``//tokenize`` is at the server's root.
            body: JSON.
            read: Turns the answer into what is wanted; raises `Malformed` where it cannot, and the request is sent
                again.

        Raises:
            EndpointError: It failed for good; the message names the request.
            ContextLengthError: The server finds it too long.
            BackendClosedError: The client is closed.
        """
        return await self._send("POST", path, body, read)

    async def get(self, path: str, read: Callable[[Any], T]) -> T:
        """Ask for something; as `post`."""
        return await self._send("GET", path, None, read)

    async def aclose(self) -> None:
        """Close all connections; requests under way fail with `BackendClosedError`."""
        self._closed = True
        await self._connections.aclose()

    def check_open(self) -> None:
        """Refuse to be used after `aclose`."""
        if self._closed:
            raise BackendClosedError(f"the connection to {self.url} is closed")

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], T]) -> T:
        number = f"ets-{uuid.uuid4().hex[:16]}"
        url = self._root() + path[1:] if path.startswith("//") else self._base_url + path
        tries = 0

        async def once() -> T:
            nonlocal tries
            tries += 1
            return await self._once(method, url, body, read, f"{number}-{tries}")

        return await self._retries.call(once, what=f"{method} {url} [{number}]")

    async def _once(
        self, method: str, url: str, body: Mapping[str, Any] | None, read: Callable[[Any], T], number: str
    ) -> T:
        """Send a request once."""
        self.check_open()
        client = await self._connections.get()
        request = f"{method} {url} [{number}]"
        try:
            # `object` has the SDK parse the JSON and build none of its models, which would take several times as long.
            options: Any = {"headers": {"X-Request-Id": number}, "timeout": self._timeout}
            if method == "GET":
                answer: Any = await client.get(url, cast_to=object, options=options)
            else:
                answer = await client.post(url, cast_to=object, body=body, options=options)
        except openai.APIError as error:
            if self._closed:
                raise BackendClosedError(f"the connection to {self.url} was closed during {request}") from None
            raise self._translated(error, request) from error
        except ValueError as error:
            raise EndpointError(f"{request}: the answer is not valid JSON: {error}", retryable=True) from error
        if isinstance(answer, str):
            raise EndpointError(
                f"{request}: the answer is no JSON but {answer[:60]!r}; is this the address of the API, with /v1?"
            )
        try:
            return read(answer)
        except Malformed as error:
            raise EndpointError(f"{request}: the answer cannot be used: {error}", retryable=True) from error

    def _sdk(self) -> openai.AsyncOpenAI:
        """Return a client of the SDK's."""
        secret = self._secret.get_secret_value() if self._secret is not None else "none"
        basic = f"Basic {base64.b64encode(secret.encode()).decode()}"
        return openai.AsyncOpenAI(
            base_url=self._base_url,
            api_key="none" if self._basic else secret,
            default_headers={"Authorization": basic} if self._basic else None,
            max_retries=0,
        )

    def _root(self) -> str:
        return self._base_url.removesuffix("/v1")

    def _translated(self, error: openai.APIError, request: str) -> BackendError:
        """Return the error to raise for one of the SDK's."""
        if isinstance(error, openai.APITimeoutError):
            return EndpointError(f"{request}: no answer within {self._timeout:g} s", retryable=True)
        if not isinstance(error, openai.APIStatusError):
            reason = str(error.__cause__ or error) or type(error.__cause__ or error).__name__
            return EndpointError(f"{request}: the connection failed: {self._clean(reason)}", retryable=True)
        status, message = error.status_code, self._clean(_message(error))
        text = f"{request}: the server answered {status}: {message}"
        if status == 400 and any(phrase in f"{error.code} {message}" for phrase in _TOO_LONG):
            return ContextLengthError(text)
        if status in {401, 403}:
            text += f"; check the key ({self._key_hint})"
        if status == 404:
            text += "; check the model's name and the address"
        return EndpointError(
            text, status=status, retryable=_retryable(error), retry_after=retry_after(error.response.headers)
        )

    def _clean(self, text: str) -> str:
        """Return a server's text without the key, which some repeat in their messages."""
        if self._secret is not None and self._secret.get_secret_value():
            text = text.replace(self._secret.get_secret_value(), "(key)")
        return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "…"


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    if isinstance(body, Mapping):
        body = body.get("message") or body.get("detail") or body
    return " ".join(str(body if body is not None else error.message).split())


def _retryable(error: openai.APIStatusError) -> bool:
    if (advice := error.response.headers.get("x-should-retry")) in {"true", "false"}:
        return bool(advice == "true")
    if error.code == "insufficient_quota":  # A 429 that waiting does not help.
        return False
    return may_pass(error.status_code)
