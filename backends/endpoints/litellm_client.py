"""Sends requests through litellm: with connections of its own, limited and retried by this package's means alone.

litellm keeps HTTP clients for the whole process, whoever asks. Here each backend has its own in each event loop, so
that they can be closed without an effect on others.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar
from weakref import WeakSet

from backends.endpoints.litellm_errors import known_secrets, translated
from backends.endpoints.litellm_module import litellm
from backends.endpoints.per_loop import PerLoop
from backends.endpoints.secrets import cleaned, hidden
from backends.endpoints.sending import EndpointClient
from backends.errors import BackendError
from backends.limits import Limiter
from backends.retries import RetryPolicy

T = TypeVar("T")

_log = logging.getLogger(__name__)

_PATIENCE = 0.01
"""Seconds between two looks at whether litellm's thread is done with a request that was cancelled."""
_is_internal_call: ContextVar[bool] = importlib.import_module("litellm._internal_context").is_internal_call
_ACOMPLETION = inspect.unwrap(litellm.acompletion).__code__


class LiteLLMClient(EndpointClient["_Connections"]):
    """Connections to one model of one provider.

    Args:
        name: Names the model, for messages.
        arguments: Of every call of `litellm.acompletion`, the model and the key among them.
        secrets: Keys among them, which are not to be shown.
        retries: What is tried again, how often and for how long.
        limiter: Most requests at the same time; one keeps its place while it waits to be tried again.
        timeout: Seconds that a single try may take.
    """

    def __init__(
        self,
        name: str,
        arguments: Mapping[str, Any],
        *,
        secrets: Iterable[str],
        retries: RetryPolicy,
        limiter: Limiter,
        timeout: float,
    ) -> None:
        """Connect to nothing yet."""
        self._secrets = frozenset(secrets)
        self._limiter = limiter
        self._arguments = {
            **arguments,
            "timeout": timeout,
            "num_retries": 0,
            "max_retries": 0,
            "drop_params": False,
            # An answer out of a cache is no draw.
            "cache": {"no-cache": True, "no-store": True},
        }
        connections = PerLoop(name, lambda: _Connections(self._hide), _Connections.close)
        super().__init__(connections, retries=retries, timeout=timeout)

    async def ask(self, body: Mapping[str, Any], read: Callable[[Any], T], *, rank: int) -> T:
        """Send a request, and return what `read` makes of litellm's answer.

        Args:
            body: Arguments of this call of `litellm.acompletion`.
            read: Turns the answer into what is wanted; raises `MalformedError` where it cannot, and the request is sent
                again.
            rank: Of those that wait for a place, requests with lower ones go first.

        Raises:
            EndpointError: It failed for good; the message names the request.
            CapabilityError: The provider does not take one of the arguments.
            ContextLengthError: The provider finds it too long.
            BackendClosedError: The client is closed.
        """

        async def ask(connections: _Connections, number: str) -> Any:
            return await _outcome(connections.begin({**self._arguments, **body, "litellm_call_id": number}))

        async with self._limiter.place(rank=rank, begun=True):
            return await self._send(self._connections.name, ask, read)

    def _translated(self, error: Exception, request: str) -> BackendError:
        return translated(error, request, timeout=self._timeout, clean=self.clean)

    def clean(self, text: str) -> str:
        """Return a text of the provider's as it can be shown."""
        return cleaned(text, known_secrets(self._secrets))

    def _hide(self, text: str) -> str:
        return hidden(text, known_secrets(self._secrets))


class _Connections:
    """Calls of litellm in one event loop, and the HTTP clients that it makes for them.

    It stands in for litellm's own cache of clients, in these calls only.

    Args:
        hide: Returns a text without keys.
    """

    def __init__(self, hide: Callable[[str], str]) -> None:
        self.hide = hide
        self._cache = importlib.import_module("litellm.caching.llm_caching_handler").LLMClientCache()
        self._made: WeakSet[Any] = WeakSet()
        self._tasks: set[asyncio.Task[Any]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def set_cache(self, key: str, value: Any, litellm_owned_client: bool = False, **rest: Any) -> None:
        """Keep a client; one that the user gave to litellm is not ours to close."""
        if litellm_owned_client:
            self._made.add(value)
        self._cache.set_cache(key, value, litellm_owned_client=litellm_owned_client, **rest)

    def begin(self, arguments: Mapping[str, Any]) -> asyncio.Task[Any]:
        """Begin a call."""
        task = asyncio.create_task(self._call(arguments))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """End all calls and close all clients."""
        await asyncio.gather(*(_stop(task) for task in list(self._tasks)))
        made = list(self._made)
        while made:
            client = made.pop()
            try:
                closing = (getattr(client, "aclose", None) or client.close)()
                if inspect.isawaitable(closing):
                    await closing
            except Exception as error:  # The others are to be closed all the same.
                _log.debug("closing a %s failed: %r", type(client).__name__, error)
            del client
        self._cache.flush_cache()
        await asyncio.sleep(0)  # Clients begin a last task when they are collected.

    async def _call(self, arguments: Mapping[str, Any]) -> Any:
        # A task has a context of its own, so nothing else sees these, and nothing has to be set back.
        _connections.set(self)
        _is_internal_call.set(True)  # No callbacks, no worker in the background that keeps logs.
        if not isinstance(litellm.in_memory_llm_clients_cache, _Switch):
            litellm.in_memory_llm_clients_cache = _Switch(litellm.in_memory_llm_clients_cache)
        return await litellm.acompletion(**arguments)


_connections: ContextVar[_Connections | None] = ContextVar("litellm_connections", default=None)


class _NoKeys(logging.Filter):
    """Takes the keys of a backend's calls out of what litellm logs of them."""

    def filter(self, record: logging.LogRecord) -> bool:
        if (call := _connections.get()) is not None:
            record.msg, record.args = call.hide(record.getMessage()), None
            if record.exc_info:
                record.exc_text = call.hide(logging.Formatter().formatException(record.exc_info))
                record.exc_info = None
        return True


logging.getLogger("LiteLLM").addFilter(_NoKeys())


class _Switch:
    """litellm's cache of HTTP clients, but within calls of a backend that backend's own."""

    def __init__(self, shared: Any) -> None:
        self._shared = shared

    def __getattr__(self, name: str) -> Any:
        return getattr(_connections.get() or self._shared, name)


async def _outcome(task: asyncio.Task[T]) -> T:
    """Return what a call returns; end it where waiting for it is ended."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _stop(task)
        raise


async def _stop(task: asyncio.Task[Any]) -> None:
    """Cancel a call, and wait until it has ended."""
    try:
        # litellm prepares a request in a thread, which returns a coroutine; nobody would ever await that one.
        while _in_thread(task):
            await asyncio.wait([task], timeout=_PATIENCE)
    finally:
        task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # It is known now; asyncio would complain otherwise.


def _in_thread(task: asyncio.Task[Any]) -> bool:
    """Whether a call waits for litellm's thread: then the innermost coroutine is `litellm.acompletion` itself."""
    innermost: Any = task.get_coro()
    while inspect.iscoroutine(inner := innermost.cr_await):
        innermost = inner
    return not task.done() and innermost.cr_code is _ACOMPLETION
