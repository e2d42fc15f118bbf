"""`EndpointClient`: what sending a request takes, whatever it is sent with."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from backends.concurrency import UnderWay
from backends.endpoints.per_loop import PerLoop
from backends.endpoints.replies import MalformedError
from backends.errors import BackendClosedError, BackendError, EndpointError, UnreachableError
from backends.retries import RetryPolicy
from backends.turns import take_turn

C = TypeVar("C")
T = TypeVar("T")


class EndpointClient(ABC, Generic[C]):
    """Sends requests: in turns, tried again, each try in its time, and none after closing.

    A client may be used from several event loops, one after the other or at once: each has connections of its own,
    which end with it.

    Args:
        connections: What is sent with.
        retries: What is tried again, how often and for how long.
        timeout: Seconds that a single try may take, from connecting to the last byte.
    """

    def __init__(self, connections: PerLoop[C], *, retries: RetryPolicy, timeout: float) -> None:
        """Connect to nothing yet."""
        self._connections = connections
        self._retries = retries
        self._timeout = timeout
        self._under_way = UnderWay()

    async def aclose(self) -> None:
        """Close all connections; requests under way fail with `BackendClosedError`, and those that wait, too."""
        self._connections.refuse()
        # Closing connections would not do: a request that waits to be tried again, or is only about to connect, would
        # go on, over a new one.
        self._under_way.end()
        await self._connections.aclose()

    def check_open(self) -> None:
        """Refuse to be used after `aclose`."""
        self._connections.check_open()

    @abstractmethod
    def _translated(self, error: Exception, request: str) -> BackendError:
        """Return the error to raise for one that sending a request has raised; it is shown no cause."""

    @abstractmethod
    def clean(self, text: str) -> str:
        """Return a text of the server's as it can be shown."""

    async def _send(
        self,
        what: str,
        ask: Callable[[C, str], Awaitable[Any]],
        read: Callable[[Any], T],
        *,
        within: float | None = None,
    ) -> T:
        """Send a request, and return what `read` makes of the answer.

        Args:
            what: Names the request, for messages.
            ask: Sends it once, given connections and a number for this try.
            read: Turns the answer into what is wanted; raises `MalformedError` where it cannot, and the request is sent
                again.
            within: Seconds after which no answer means that there is no server, which is then not asked again; no more
                than those of a try count.

        Raises:
            BackendError: It failed for good; the message names the request.
        """
        number = f"ets-{uuid.uuid4().hex[:16]}"
        request = f"{what} [{number}]"
        tries = itertools.count(1)

        async def once() -> T:
            return await self._once(what, f"{number}-{next(tries)}", ask, read, within)

        try:
            async with asyncio.timeout(None) as limit:
                with self._under_way.noted(limit):
                    self.check_open()
                    return await self._retries.call(once, what=request)
        except TimeoutError:
            if not limit.expired():
                raise
        raise self._closed_during(request)

    async def _once(
        self,
        what: str,
        number: str,
        ask: Callable[[C, str], Awaitable[Any]],
        read: Callable[[Any], T],
        within: float | None,
    ) -> T:
        await take_turn()  # Thirty answers that come at once, and the requests that follow them, take 40 ms.
        request = f"{what} [{number}]"
        connection = await self._connection(request)  # Making one takes long, and is not the server's time.
        seconds = self._timeout if within is None else min(within, self._timeout)
        failure: BackendError
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                answer = await ask(connection, number)
        except BackendError:
            raise
        except Exception as error:
            if self._connections.closed:
                failure = self._closed_during(request)
            elif not limit.expired():
                failure = self._translated(error, request)
            elif within is None:
                failure = EndpointError(f"{request}: no answer within {seconds:g} s", retryable=True)
            else:
                option = "connect_timeout" if within <= self._timeout else "timeout"
                failure = UnreachableError(f"{request}: no answer within {seconds:g} s, which {option} allows")
        else:
            try:
                return read(answer)
            except MalformedError as error:
                reason = self.clean(str(error))
                failure = EndpointError(f"{request}: the answer cannot be used: {reason}", retryable=True)
        # Here, where it has no cause: the others may repeat what the server said of the key.
        raise failure

    async def _connection(self, request: str) -> C:
        """Return what to send with; that it cannot be made is the fault of settings here, which no other try mends."""
        try:
            return await self._connections.get()
        except BackendError:
            raise
        except Exception as error:
            reason = self.clean(f"{type(error).__name__}: {error}")
        raise BackendError(f"{request}: no connection can be made: {reason}")

    def _closed_during(self, request: str) -> BackendClosedError:
        return BackendClosedError(f"{self._connections.name} was closed during {request}")
