"""Rewards that do what a caller wrote, such as a pattern, in worker processes that all runs share."""

from __future__ import annotations

from typing import Any, Self

from rewards.pointwise import PointwiseReward
from rewards.shared_workers import PATIENCE, Allowance
from rewards.workers import Workers


class ConfinedReward(PointwiseReward):
    """A pointwise reward whose verdicts come from shared processes with limits; subclasses `ask` them.

    One run must not take the processes away from the others, see `Allowance`.
    """

    concurrency = Allowance.at_once  # The time of a judgement begins when it is its turn.

    workers: Workers
    """The processes."""

    _allowance: Allowance | None = None
    """What this run has left; None outside of one."""

    async def ask(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the processes' function returns.

        Raises:
            RewardError: It failed, or it has failed too often in this run.
        """
        return await (self._allowance or Allowance()).call(self.workers, *args, **kwargs)

    def session(self) -> Self:
        """Return a copy with an allowance for one run."""
        session = super().session()
        session._allowance = Allowance(patience=PATIENCE)
        return session
