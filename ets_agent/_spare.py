"""A whole response to fall back on while a run has weighed nothing yet."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from backends import Backend, Completion, State


class Spare:
    """Draws one response of the reference beside the first step of a run that may be cut short.

    Nothing gives a complete answer sooner. Without it, a run that is cut short in its first step, the longest one,
    would have nothing to return. It is drawn with a seed of its own, so the run's own draws are the same without it.

    Args:
        backend: The reference.
        start: The empty response.
        seed: Of the draw.
    """

    def __init__(self, backend: Backend, start: State, seed: int) -> None:
        """Draw nothing yet."""
        self._backend = backend
        self._start = start
        self._seed = seed
        self._task: asyncio.Task[list[list[Completion]]] | None = None

    async def __aenter__(self) -> Self:
        """Begin to draw."""
        self._task = asyncio.create_task(self._backend.rollout([self._start], 1, seed=self._seed))
        try:
            await asyncio.sleep(0)  # It goes first where calls wait for a place, or are let in by a token budget.
        except BaseException:
            await self._stop()  # What was cancelled before it was entered is never left.
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, whether it was drawn or not."""
        await self._stop()

    async def drawn(self) -> None:
        """Wait until it is drawn, or has failed."""
        assert self._task is not None
        await asyncio.wait([self._task])

    @property
    def completion(self) -> Completion | None:
        """The response, if it was drawn in time; its failure is not worth an error."""
        task = self._task
        if task is None or not task.done() or task.cancelled() or task.exception() is not None:
            return None
        ((completion,),) = task.result()
        return None if completion.finish_reason == "error" else completion

    async def _stop(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
