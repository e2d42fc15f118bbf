"""The MCP server over stdin and stdout."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import Any, cast

from mcp.server.stdio import stdio_server

from ets_agent.guided import GuidedReasoning
from ets_agent.mcp_server._server import build
from ets_agent.mcp_server._source import Awaited, Loading, Ready

_STDIN = 0
_UNREAD = 64
"""Lines that are read ahead."""


async def serve(reasoning: GuidedReasoning | Loading) -> None:
    """Serve one client; see `ets_agent.mcp_server.serve_stdio`."""
    async with AsyncExitStack() as stack:
        source = Awaited(reasoning) if isinstance(reasoning, Loading) else Ready(reasoning)
        server, _ = build(source)
        lines = _Lines(stack.enter_context(_claimed_stdin()))
        async with stdio_server(stdin=cast(Any, lines)) as (incoming, outgoing):
            options = server.create_initialization_options()
            serving = asyncio.create_task(server.run(incoming, outgoing, options))
            tasks: list[asyncio.Task[None]] = [serving]
            try:
                if isinstance(source, Awaited):
                    # Not before stdout is the protocol's alone: what a library prints goes to stderr now.
                    loading = asyncio.create_task(source.load(stack))
                    loading.add_done_callback(lambda task: lines.end() if _failed(task) else None)
                    tasks.append(loading)
                await asyncio.wait([serving])
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                # Looked at here, lest asyncio complains of one that fails while this is cancelled.
                failed = [task for task in tasks if _failed(task)]
        for task in reversed(failed):  # Where loading has failed, that is why serving has ended.
            task.result()


def _failed(task: asyncio.Task[None]) -> bool:
    return not task.cancelled() and task.exception() is not None


@contextmanager
def _claimed_stdin() -> Iterator[int]:
    """Give a descriptor of stdin that is nobody else's: children and libraries read from an empty one meanwhile.

    It stays open, for a thread may still be reading from it.
    """
    own = os.dup(_STDIN)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), _STDIN)
    try:
        yield own
    finally:
        os.dup2(own, _STDIN)


class _Lines:
    """The lines of a descriptor, read by a thread that nothing waits for.

    The SDK's own reader can be left only after one more line, however long the client takes to send it.

    Args:
        descriptor: Where they come from.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: asyncio.Queue[str | None] = asyncio.Queue()
        self._room = threading.Semaphore(_UNREAD)

    async def __aiter__(self) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(loop,), name="ets-stdin", daemon=True).start()
        while (line := await self._lines.get()) is not None:
            self._room.release()
            yield line

    def end(self) -> None:
        """Let no further line come."""
        self._lines.put_nowait(None)

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        rest: list[bytes] = []
        with suppress(RuntimeError):  # The loop is closed.
            while data := self._some():
                first, *others = data.split(b"\n")
                rest.append(first)
                for other in others:
                    self._put(loop, b"".join(rest))
                    rest = [other]
            if any(rest):
                self._put(loop, b"".join(rest))
            loop.call_soon_threadsafe(self._lines.put_nowait, None)

    def _some(self) -> bytes:
        try:
            return os.read(self._descriptor, 65536)
        except OSError:
            return b""

    def _put(self, loop: asyncio.AbstractEventLoop, line: bytes) -> None:
        self._room.acquire()
        loop.call_soon_threadsafe(self._lines.put_nowait, line.decode("utf-8", "replace"))
