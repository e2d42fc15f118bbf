"""Sends requests to an OpenAI-style server: retried, with errors that name the request and show no key."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import openai
from pydantic import SecretStr

from backends.endpoints import addresses, statuses
from backends.endpoints.per_loop import PerLoop
from backends.endpoints.secrets import LONGEST_MESSAGE, cleaned
from backends.endpoints.sending import EndpointClient
from backends.errors import BackendError, ContextLengthError, EndpointError, PromptError, UnreachableError
from backends.retries import RetryPolicy

T = TypeVar("T")

_TOO_LONG = ("context_length_exceeded", "maximum context length", "maximum model length", "context window")
_LONGEST_QUOTE = 60


class IllegibleError(EndpointError):
    """What was answered is no JSON."""


class Client(EndpointClient[openai.AsyncOpenAI]):
    """Connections to one server.

    Args:
        base_url: Address of the API, such as ``http://localhost:8000/v1``; ``http://USER:PASSWORD@…`` sends these
            instead of a key.
        api_key: Sent as bearer token; None where the server asks for none.
        key_hint: What to check when the server refuses the key, for messages.
        retries: What is tried again, how often and for how long.
        timeout: Seconds that a single try may take, from connecting to the last byte.

    Raises:
        BackendError: This is no address, or no key.
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
        url = addresses.checked(base_url)
        # Out of the address, which HTTP libraries log.
        self._base_url = addresses.shown_url(url).rstrip("/")
        user = addresses.credentials(url)
        key = api_key.get_secret_value() if api_key is not None else ""
        if not (key.isascii() and (key.isprintable() or not key)):
            raise BackendError(f"the key ({key_hint}) has a character that no header can hold, such as a line's end")
        if user is not None and key:
            raise BackendError(f"the address {self._base_url} has a user, and there is a key; only one can be sent")
        if user is not None:
            encoded = base64.b64encode(user.encode()).decode()
            self._authorization: str | None = f"Basic {encoded}"
            self._secrets = [user, *user.split(":", 1), encoded]
        else:
            self._authorization = f"Bearer {key}" if key else None
            self._secrets = [key]
        self._key_hint = key_hint
        connections = PerLoop(f"the connection to {self._base_url}", self._sdk, openai.AsyncOpenAI.close)
        super().__init__(connections, retries=retries, timeout=timeout)

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
        url = self._url(path)

        # `object` has the SDK parse the JSON and build none of its models, which would take several times as long.
        async def ask(sdk: openai.AsyncOpenAI, number: str) -> Any:
            return self._legible(await sdk.post(url, cast_to=object, body=body, options=self._options(number)))

        return await self._send(f"POST {url}", ask, read)

    async def get(self, path: str, read: Callable[[Any], T], *, within: float | None = None) -> T:
        """Ask for something; as `post`.

        Args:
            path: As for `post`.
            read: As for `post`.
            within: Seconds after which no answer means that there is no server, which is then not asked again.
        """
        url = self._url(path)

        async def ask(sdk: openai.AsyncOpenAI, number: str) -> Any:
            return self._legible(await sdk.get(url, cast_to=object, options=self._options(number)))

        return await self._send(f"GET {url}", ask, read, within=within)

    def _url(self, path: str) -> str:
        return self._base_url.removesuffix("/v1") + path[1:] if path.startswith("//") else self._base_url + path

    def _options(self, number: str) -> Any:
        """Return the SDK's options of a request, which it logs."""
        headers: dict[str, Any] = {"X-Request-Id": number}
        if self._authorization is None:
            headers["Authorization"] = openai.Omit()  # It insists on one unless it is left out here.
        # Its own limit of time, of which it has none here, would be one between two bytes.
        return {"headers": headers, "timeout": None}

    def _sdk(self) -> openai.AsyncOpenAI:
        """Return a client of the SDK's."""
        own = _is_openai(self._base_url)
        headers: dict[str, Any] = {
            name: openai.Omit() for name in _openai_headers() if not own or name.lower() == "authorization"
        }
        if self._authorization is not None:
            headers["Authorization"] = self._authorization
        return openai.AsyncOpenAI(
            base_url=self._base_url,
            api_key="none",
            default_headers=headers,
            max_retries=0,
            # Its own one begins a task when it is collected, which fails where the client could not be made.
            http_client=openai.DefaultAsyncHttpxClient(),
        )

    def _legible(self, answer: Any) -> Any:
        """Refuse an answer that is a text."""
        if isinstance(answer, str):
            quoted = self.clean(answer, longest=_LONGEST_QUOTE)
            raise _NoJsonError(f"is no JSON but {quoted!r}; is this the address of the API, with /v1?")
        return answer

    def _translated(self, error: Exception, request: str) -> BackendError:
        """Return the error to raise for one of the SDK's."""
        if isinstance(error, openai.APIStatusError):
            return self._refused(error, request)
        reason = self.clean(str(error.__cause__ or error) or type(error.__cause__ or error).__name__)
        if isinstance(error, _NoJsonError):
            return IllegibleError(f"{request}: the answer {error}")
        if isinstance(error, openai.APIError):
            return UnreachableError(f"{request}: the connection failed: {reason}", retryable=True)
        if isinstance(error, UnicodeEncodeError):
            return PromptError(f"{request}: the text has half of a surrogate pair, which is no character: {error}")
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
            return IllegibleError(f"{request}: the answer is not valid JSON: {reason}", retryable=True)
        return EndpointError(f"{request}: it could not be sent: {type(error).__name__}: {reason}")

    def _refused(self, error: openai.APIStatusError, request: str) -> BackendError:
        """Return the error to raise for an answer with a status of failure."""
        status, message = error.status_code, self.clean(_message(error))
        text = f"{request}: the server answered {status}: {message}"
        if status == 400 and any(phrase in f"{error.code} {message}" for phrase in _TOO_LONG):
            return ContextLengthError(text)
        return statuses.failure(
            text, status, headers=error.response.headers, code=str(error.code), key_hint=self._key_hint
        )

    def clean(self, text: str, *, longest: int = LONGEST_MESSAGE) -> str:
        """Return a server's text without the key, which some repeat in their messages, and cut to a length."""
        return cleaned(text, self._secrets, longest=longest)


class _NoJsonError(Exception):
    """An answer is a text."""


def _is_openai(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "openai.com" or host.endswith(".openai.com")


def _openai_headers() -> list[str]:
    """Return the headers that the SDK makes of environment variables meant for OpenAI."""
    own = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
    return ["OpenAI-Organization", "OpenAI-Project", *(line.partition(":")[0].strip() for line in own if ":" in line)]


def _message(error: openai.APIStatusError) -> str:
    """Return what a server says, as it says it."""
    said = error.body
    if isinstance(said, Mapping):
        said = said.get("message") or said.get("detail") or said
    if said is None:
        return error.message
    return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
