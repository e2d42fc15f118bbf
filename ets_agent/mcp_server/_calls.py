"""Calls of the tool under way: each run in a task of its own, with signs of life for whoever waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio

from ets_agent.guided import GuidedAnswer, GuidedRequest
from ets_agent.guided.schema import check_arguments
from ets_agent.mcp_server._progress import Note, Progress
from ets_agent.mcp_server._source import Source
from ets_agent.results import Event

HEARTBEAT = 5.0
"""Seconds after which a caller that has heard nothing is told that the run goes on; hosts give up after a minute."""
_LOOK = 1.0
"""Seconds between looks whether the caller is still there."""
_CLOSING = 5.0
"""Seconds that a cancelled run has to close what it holds."""


class CallEndedError(Exception):
    """A run was ended from outside: its caller is gone, or the server shuts down."""


class Calls:
    """Answers calls.

    A run must not stand directly in the SDK's task: that is cancelled by a scope of anyio, which cancels every further
    await, too, so that the run could close nothing that takes an await to close. In a task of its own it is cancelled
    once. Neither does it wait for those who read its progress slowly, so their deadlines hold.

    Args:
        source: Gives what answers.
    """

    def __init__(self, source: Source) -> None:
        """Nothing is under way."""
        self._source = source
        self._runs: set[asyncio.Task[GuidedAnswer]] = set()

    async def answer(
        self,
        arguments: Mapping[str, Any],
        *,
        tell: Callable[[Note], Awaitable[None]],
        gone: Callable[[], Awaitable[bool]],
    ) -> GuidedAnswer:
        """Return the answer to a request; cancelling the call ends the run.

        Args:
            arguments: What the calling model gave.
            tell: Told about the progress.
            gone: Asked now and then whether the caller has gone away.

        Raises:
            CallEndedError: The caller is gone, or `close` was called.
            NotLoadedError: The call's time was over before the models were loaded.
            RequestError: The request is not allowed or not possible.
            backends.BackendError: The model failed, or too many calls wait already.
        """
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        run = asyncio.create_task(self._run(arguments, events))
        self._runs.add(run)
        run.add_done_callback(self._runs.discard)
        try:
            await self._report(events, tell, gone)
            await asyncio.wait([run])
            if run.cancelled():
                raise CallEndedError("the server is shutting down")
            return run.result()
        finally:
            await _end(run)

    async def close(self) -> None:
        """End all calls; those who wait are told."""
        runs = list(self._runs)
        for run in runs:
            run.cancel()
        if runs:
            await asyncio.wait(runs, timeout=_CLOSING)

    async def _run(self, arguments: Mapping[str, Any], events: asyncio.Queue[Event | None]) -> GuidedAnswer:
        try:
            asked = GuidedRequest.build(check_arguments(arguments, self._source.policy))
            reasoning, request = await self._source.take(asked)
            return await reasoning(request, on_event=events.put_nowait)
        finally:
            events.put_nowait(None)

    async def _report(
        self,
        events: asyncio.Queue[Event | None],
        tell: Callable[[Note], Awaitable[None]],
        gone: Callable[[], Awaitable[bool]],
    ) -> None:
        """Tell of each event until there are no more, and of the time that passes in between."""
        progress = Progress()
        began = told = time.monotonic()
        while True:
            try:
                async with asyncio.timeout(_LOOK):
                    event = await events.get()
            except TimeoutError:
                if await gone():
                    raise CallEndedError("the caller is gone") from None
                now = time.monotonic()
                note = progress.beat(now - began) if now - told >= HEARTBEAT else None
            else:
                if event is None:
                    return
                note = progress.of(event)
            if note is not None:
                told = time.monotonic()
                await tell(note)


async def _end(run: asyncio.Task[Any]) -> None:
    """Cancel a run that is still under way, and give it time to close what it holds."""
    if not run.done():
        run.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([run], timeout=_CLOSING)
    if run.done() and not run.cancelled():
        run.exception()  # So that asyncio does not log it as never heard of.
