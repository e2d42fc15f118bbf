"""Where the server has its tool from: at once, or as soon as the models are loaded, which may take minutes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ets_agent.config import ETSConfig
from ets_agent.guided import GuidedReasoning, GuidedRequest, Policy

T = TypeVar("T")


class NotLoadedError(Exception):
    """The time of a call was over before the models were loaded."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """A `GuidedReasoning` whose models are still to be loaded.

    Attributes:
        policy: What callers may ask for, as it will have it.
        config: Its settings.
        model: The model's name.
        load: Returns what gives it and closes it. This is called in a thread, which is left behind if the server ends.
    """

    policy: Policy
    config: ETSConfig
    model: str
    load: Callable[[], AbstractAsyncContextManager[GuidedReasoning]]


class Source(Protocol):
    """Gives the tool, and knows beforehand what clients are told of it."""

    policy: Policy
    model: str

    async def take(self, request: GuidedRequest) -> tuple[GuidedReasoning, GuidedRequest]:
        """Return the tool, and the request with what is left of its time.

        Raises:
            NotLoadedError: Its time was over before.
            RequestError: The request is not allowed.
        """
        ...


class Ready:
    """A tool that is there.

    Args:
        reasoning: The tool.
    """

    def __init__(self, reasoning: GuidedReasoning) -> None:
        """Keep it."""
        self.policy = reasoning.policy
        self.model = reasoning.backend.name
        self._reasoning = reasoning

    async def take(self, request: GuidedRequest) -> tuple[GuidedReasoning, GuidedRequest]:
        """Return the tool; see `Source.take`."""
        return self._reasoning, request


class Awaited:
    """A tool that is being loaded, within an event loop.

    Args:
        loading: What loads it.
    """

    def __init__(self, loading: Loading) -> None:
        """Load nothing yet."""
        self.policy = loading.policy
        self.model = loading.model
        self._loading = loading
        self._loaded: asyncio.Future[GuidedReasoning] = asyncio.get_running_loop().create_future()

    async def load(self, stack: AsyncExitStack) -> None:
        """Load it; the stack closes it.

        Raises:
            Exception: What loading has raised. Calls that wait are cancelled then.
        """
        try:
            opened = await _in_thread(self._loading.load)
            self._loaded.set_result(await stack.enter_async_context(opened))
        finally:
            self._loaded.cancel()

    async def take(self, request: GuidedRequest) -> tuple[GuidedReasoning, GuidedRequest]:
        """Return the tool once it is there; see `Source.take`."""
        if not self._loaded.done():
            began = time.monotonic()
            # What is not allowed is refused at once.
            limit = self.policy.check(request, self._loading.config, one_step=False).config.timeout
            try:
                async with asyncio.timeout(limit):
                    await asyncio.shield(self._loaded)
            except TimeoutError:
                raise NotLoadedError("the model was not loaded before the time was over; try again later") from None
            if limit is not None:
                left = max(limit - (time.monotonic() - began), 1e-3)
                request = request.model_copy(update={"timeout": left})
        return self._loaded.result(), request


def _in_thread(call: Callable[[], T]) -> asyncio.Future[T]:
    """Call something in a thread that nothing waits for, not even the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def done(result: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = call()
        except Exception as raised:
            error = raised
        with suppress(RuntimeError):  # The loop is closed.
            loop.call_soon_threadsafe(done, result, error)

    threading.Thread(target=run, name="ets-loading", daemon=True).start()
    return future
