"""Rewards that do what a caller wrote, such as a pattern, in worker processes that all runs share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

from backends import Completion, Prompt
from rewards.errors import RewardError
from rewards.pointwise import PointwiseReward
from rewards.workers import DEFAULT_SIZE

SECONDS = 1.0
"""Most processor time of one judgement."""
MEMORY = 2 << 30
"""Most address space of a process that judges, in bytes."""
PATIENCE = 2
"""Failures after which a run has no more verdicts; a single one may be the fault of an unlucky response."""


class ConfinedReward(PointwiseReward):
    """A pointwise reward whose verdicts come from worker processes with limits; subclasses say how.

    One run must not take the processes away from the others. So a run never has more judgements in their queue than
    there are processes, which serves runs in turn, and one whose judgements fail again and again is given up.
    """

    concurrency = DEFAULT_SIZE

    _failures: int | None = None
    """How many there were in this run; None outside of one."""

    @abstractmethod
    async def verdict(self, text: str) -> float:
        """Return the reward of one response.

        Raises:
            RewardError: It took too long, or what the caller wrote is no good.
        """

    async def judge(self, prompt: Prompt, completion: Completion) -> float:
        """Return the reward of one completion."""
        if self._failures is not None and self._failures >= PATIENCE:
            raise RewardError(f"it is not asked any more in this run, after {self._failures} failures")
        try:
            return await self.verdict(completion.text)
        except RewardError:
            if self._failures is not None:
                self._failures += 1
            raise

    def session(self) -> Self:
        """Return a copy that counts the failures of one run."""
        session = super().session()
        session._failures = 0
        return session
