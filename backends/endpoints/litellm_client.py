"""Sends requests through litellm: with connections of its own, limited and retried by this package's means alone.

litellm keeps HTTP clients for the whole process, whoever asks. Here each backend has its own in each event loop, so
that they can be closed without an effect on others.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.metadata
import inspect
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar
from weakref import WeakSet

from backends.endpoints.per_loop import PerLoop
from backends.endpoints.replies import MalformedError
from backends.errors import BackendClosedError, BackendError, EndpointError
from backends.limits import Limiter
from backends.retries import RetryPolicy

T = TypeVar("T")

_log = logging.getLogger(__name__)

_MALICIOUS = frozenset({"1.82.7", "1.82.8"})
"""Releases that were not made by litellm's authors: they send credentials away."""
_AT_IMPORT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_MODE": "PRODUCTION",
}
"""So that importing litellm fetches nothing, and no ``.env`` file of some folder becomes part of the environment."""
_PATIENCE = 0.01
"""Seconds between two looks at whether litellm's thread is done with a request that was cancelled."""


def _imported() -> Any:
    """Import litellm, unless it is a release that must not run.

    Raises:
        ModuleNotFoundError: It is not installed.
        BackendError: It is a malicious release.
    """
    version = importlib.metadata.version("litellm")
    if version in _MALICIOUS:
        raise BackendError(
            f"litellm {version} is a malicious release that steals credentials; it was not imported. Install another "
            "one with pip install --upgrade litellm, and replace the keys that this machine has"
        )
    with _environment(_AT_IMPORT):
        module: Any = importlib.import_module("litellm")
        # These are read when they are first needed, by which time the environment is the user's again.
        importlib.import_module("litellm.anthropic_beta_headers_manager").get_provider_name("anthropic")
    module.suppress_debug_info = True  # Otherwise it prints advice at each error.
    return module


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are not set, for a while."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


litellm = _imported()
_is_internal_call: ContextVar[bool] = importlib.import_module("litellm._internal_context").is_internal_call
_ACOMPLETION = inspect.unwrap(litellm.acompletion).__code__


class LiteLLMClient:
    """Connections to one model of one provider.

    A client may be used from several event loops, one after the other or at once: each has connections of its own,
    which end with it.

    Args:
        name: Names the model, for messages.
        arguments: Of every call of `litellm.acompletion`, the model and the key among them.
        translate: Turns an error of litellm's into the one to raise, given the request's name.
        retries: What is tried again, how often and for how long.
        limiter: Most requests at the same time; one keeps its place while it waits to be tried again.
        timeout: Seconds that a single try may take.
    """

    def __init__(
        self,
        name: str,
        arguments: Mapping[str, Any],
        *,
        translate: Callable[[Exception, str], BackendError],
        retries: RetryPolicy,
        limiter: Limiter,
        timeout: float,
    ) -> None:
        """Connect to nothing yet."""
        self._name = name
        self._translate = translate
        self._retries = retries
        self._limiter = limiter
        self._timeout = timeout
        self._arguments = {
            **arguments,
            "timeout": timeout,
            "num_retries": 0,
            "max_retries": 0,
            "drop_params": False,
            # An answer out of a cache is no draw.
            "cache": {"no-cache": True, "no-store": True},
        }
        self._connections = PerLoop(_Connections, _Connections.close)
        self._closed = False

    async def ask(self, body: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        """Send a request, and return what `read` makes of litellm's answer.

        Args:
            body: Arguments of this call of `litellm.acompletion`.
            read: Turns the answer into what is wanted; raises `MalformedError` where it cannot, and the request is sent
                again.

        Raises:
            EndpointError: It failed for good; the message names the request.
            CapabilityError: The provider does not take one of the arguments.
            ContextLengthError: The provider finds it too long.
            BackendClosedError: The client is closed.
        """
        number = f"ets-{uuid.uuid4().hex[:16]}"
        tries = 0

        async def once() -> T:
            nonlocal tries
            tries += 1
            return await self._once(body, read, f"{number}-{tries}")

        async with self._limiter.place(begun=True):
            return await self._retries.call(once, what=f"{self._name} [{number}]")

    async def aclose(self) -> None:
        """Close all connections; requests under way fail with `BackendClosedError`."""
        self._closed = True
        await self._connections.aclose()

    def check_open(self) -> None:
        """Refuse to be used after `aclose`."""
        if self._closed:
            raise BackendClosedError(f"{self._name} is closed")

    async def _once(self, body: Mapping[str, Any], read: Callable[[Any], T], number: str) -> T:
        """Send a request once."""
        self.check_open()
        connections = await self._connections.get()
        request = f"{self._name} [{number}]"
        task = connections.begin({**self._arguments, **body, "litellm_call_id": number})
        try:
            async with asyncio.timeout(self._timeout) as limit:
                answer = await _outcome(task)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if self._closed and current is not None and not current.cancelling():
                raise BackendClosedError(f"{self._name} was closed during {request}") from None
            raise
        except Exception as error:
            if limit.expired():
                raise EndpointError(f"{request}: no answer within {self._timeout:g} s", retryable=True) from None
            # Without a cause: litellm's own errors may repeat what the provider said of the key.
            raise self._translate(error, request) from None
        try:
            return read(answer)
        except MalformedError as error:
            raise EndpointError(f"{request}: the answer cannot be used: {error}", retryable=True) from error


class _Connections:
    """Calls of litellm in one event loop, and the HTTP clients that it makes for them.

    It stands in for litellm's own cache of clients, in these calls only.
    """

    def __init__(self) -> None:
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
