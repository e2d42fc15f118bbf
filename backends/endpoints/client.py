"""Sends requests to an OpenAI-style server: retried, with errors that name the request and show no key."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import openai
from pydantic import SecretStr

from backends.endpoints.addresses import credentials, shown, valid
from backends.endpoints.per_loop import PerLoop
from backends.endpoints.replies import MalformedError
from backends.endpoints.statuses import may_pass, retry_after
from backends.errors import (
    BackendClosedError,
    BackendError,
    ContextLengthError,
    EndpointError,
    PromptError,
    UnreachableError,
)
from backends.retries import RetryPolicy
from backends.turns import take_turn

T = TypeVar("T")

_TOO_LONG = ("context_length_exceeded", "maximum context length", "maximum model length", "context window")
_LONGEST_MESSAGE = 500
_LONGEST_QUOTE = 60
_SHORT_SECRET = 8
"""Characters below which a secret is cut out only where it is a word of its own; others are full of such letters."""


class IllegibleError(EndpointError):
    """What was answered is no JSON."""


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
        timeout: Seconds that a single try may take, from connecting to the last byte.
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
            raise BackendError(
                f"the address {shown(base_url)!r} is no http:// or https:// URL, or has a query; in a password, write "
                "/ ? # @ as %2F %3F %23 %40"
            )
        if api_key is not None and not api_key.get_secret_value():
            api_key = None
        if api_key is not None and not (
            api_key.get_secret_value().isascii() and api_key.get_secret_value().isprintable()
        ):
            raise BackendError(f"the key ({key_hint}) has a character that no header can hold, such as a line's end")
        # Out of the address, which HTTP libraries log.
        user = credentials(base_url)
        if user is not None and api_key is not None:
            raise BackendError(f"the address {shown(base_url)} has a user, and there is a key; only one can be sent")
        self._base_url = shown(base_url).rstrip("/")
        self._secret = SecretStr(user) if user is not None else api_key
        self._basic = user is not None
        self._no_key: dict[str, Any] = {"Authorization": openai.Omit()} if self._secret is None else {}
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
            read: Turns the answer into what is wanted; raises `MalformedError` where it cannot, and the request is sent
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
        await take_turn()  # Thirty answers that come at once, and the requests that follow them, take 40 ms.
        client = await self._connections.get()
        request = f"{method} {url} [{number}]"
        # `object` has the SDK parse the JSON and build none of its models, which would take several times as long. Its
        # own limit of time, of which it has none here, would be one between two bytes.
        options: Any = {"headers": {"X-Request-Id": number, **self._no_key}, "timeout": None}
        answer: Any = None
        failure: BackendError | None = None
        try:
            async with asyncio.timeout(self._timeout) as limit:
                if method == "GET":
                    answer = await client.get(url, cast_to=object, options=options)
                else:
                    answer = await client.post(url, cast_to=object, body=body, options=options)
            if isinstance(answer, str):
                failure = self._no_json(answer, request)
        except TimeoutError:
            if not limit.expired():
                raise
            failure = EndpointError(f"{request}: no answer within {self._timeout:g} s", retryable=True)
        except openai.APIError as error:
            if self._closed:
                failure = BackendClosedError(f"the connection to {self.url} was closed during {request}")
            else:
                failure = self._translated(error, request)
        except UnicodeEncodeError as error:
            failure = PromptError(f"{request}: the text has half of a surrogate pair, which is no character: {error}")
        except (ValueError, RecursionError) as error:
            reason = self.clean(str(error))
            failure = IllegibleError(f"{request}: the answer is not valid JSON: {reason}", retryable=True)
        if failure is None:
            try:
                return read(answer)
            except MalformedError as error:
                reason = self.clean(str(error))
                failure = EndpointError(f"{request}: the answer cannot be used: {reason}", retryable=True)
        # Here, where it has no cause: the others may repeat what the server said of the key.
        raise failure

    def _sdk(self) -> openai.AsyncOpenAI:
        """Return a client of the SDK's."""
        headers: dict[str, Any] = {}
        key = "none" if self._secret is None else self._secret.get_secret_value()
        if self._basic:
            headers["Authorization"] = f"Basic {_base64(key)}"
            key = "none"
        if not _is_openai(self._base_url):
            headers |= {name: openai.Omit() for name in _openai_headers()}
        return openai.AsyncOpenAI(base_url=self._base_url, api_key=key, default_headers=headers, max_retries=0)

    def _root(self) -> str:
        return self._base_url.removesuffix("/v1")

    def _translated(self, error: openai.APIError, request: str) -> BackendError:
        """Return the error to raise for one of the SDK's."""
        if not isinstance(error, openai.APIStatusError):
            reason = str(error.__cause__ or error) or type(error.__cause__ or error).__name__
            return UnreachableError(f"{request}: the connection failed: {self.clean(reason)}", retryable=True)
        status, message = error.status_code, self.clean(_message(error))
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

    def _no_json(self, answer: str, request: str) -> IllegibleError:
        """Return the error for an answer that is a text."""
        quoted = self.clean(answer, longest=_LONGEST_QUOTE)
        return IllegibleError(
            f"{request}: the answer is no JSON but {quoted!r}; is this the address of the API, with /v1?"
        )

    def clean(self, text: str, *, longest: int = _LONGEST_MESSAGE) -> str:
        """Return a server's text without the key, which some repeat in their messages, and cut to a length."""
        if self._secret is not None:
            text = _pattern(_forms(self._secret, basic=self._basic)).sub("(key)", text)
        return text if len(text) <= longest else text[:longest] + "…"


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _forms(secret: SecretStr, *, basic: bool) -> list[str]:
    """Return the forms in which a server may repeat a key, or a user with a password."""
    whole = secret.get_secret_value()
    if not basic:
        return [whole]
    user, _, password = whole.partition(":")
    return [whole, user, password, quote(user, safe=""), quote(password, safe=""), _base64(whole)]


def _pattern(secrets: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of some texts, the longer ones first; without any, it finds nothing."""
    found = [
        re.escape(secret) if len(secret) >= _SHORT_SECRET else rf"(?<!\w){re.escape(secret)}(?!\w)"
        for secret in sorted(filter(None, secrets), key=len, reverse=True)
    ]
    return re.compile("|".join(found) or r"(?!)")


def _is_openai(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "openai.com" or host.endswith(".openai.com")


def _openai_headers() -> list[str]:
    """Return the headers that the SDK makes of environment variables meant for OpenAI."""
    own = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
    return ["OpenAI-Organization", "OpenAI-Project", *(line.partition(":")[0].strip() for line in own if ":" in line)]


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
