"""Worker processes that all runs share, for what strangers write: their limits, and what one run may take of them."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from rewards.errors import RewardError
from rewards.workers import DEFAULT_SIZE, Workers

SECONDS = 1.0
"""Most processor time of a call."""
MEMORY = 2 << 30
"""Most address space of a process, in bytes."""
PATIENCE = 2
"""Failures after which a run is not served any more; a single one may be the fault of an unlucky response."""

_WALL_SECONDS = 20 * SECONDS
"""Most wall time of a call. It is for those that wait instead of computing, and so long that others, who get the
processor first on a busy machine, do not make a call fail which needs it for a second."""


def shared_workers(function: str, *, name: str) -> Workers:
    """Return processes that call a function within the limits; arguments as for `Workers`."""
    return Workers(function, name=name, seconds=_WALL_SECONDS, cpu_seconds=SECONDS, memory=MEMORY)


class Allowance:
    """What one run, or one call outside of runs, may take of shared processes, so that others get their turn.

    It never has more calls in their queue than there are processes, so the queue serves runs in turn. And one whose
    calls fail again and again, each of which may take all of its time, is not served any more.
    """

    at_once = DEFAULT_SIZE
    """Calls at the same time."""

    def __init__(self, *, patience: float = math.inf) -> None:
        """Begin.

        Args:
            patience: Failures after which it is used up; for a run `PATIENCE`.
        """
        self._patience = patience
        self._failures = 0
        self._places = asyncio.Semaphore(self.at_once)

    async def call(self, workers: Workers, *args: Any, **kwargs: Any) -> Any:
        """Return what the workers' function returns.

        Raises:
            RewardError: It failed, or the allowance is used up.
        """
        async with self._places:
            if self._failures >= self._patience:
                raise RewardError(f"{workers.name} is given up in this run, after {self._failures} failures")
            try:
                return await workers.call(*args, **kwargs)
            except RewardError:
                self._failures += 1
                raise
