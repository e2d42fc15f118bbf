"""A reward that checks the equations in a response; see `Arithmetic`."""

from __future__ import annotations

import re

from backends import Completion, Prompt
from rewards import PointwiseReward, RewardSpecError

_EQUATION = re.compile(r"(\d{1,9}) ([-+*]) (\d{1,9}) = (\d{1,18})")


class Arithmetic(PointwiseReward):
    """Reward the share of right equations in the working; no verdict where there is none."""

    maximum = 1.0

    def __init__(self, tolerance: int = 0) -> None:
        """Set how wrong an equation may be.

        Args:
            tolerance: Most difference between the two sides.

        Raises:
            RewardSpecError: It is negative.
        """
        if tolerance < 0:
            raise RewardSpecError(f"tolerance is {tolerance}; allowed: at least 0")
        self._tolerance = tolerance

    async def judge(self, prompt: Prompt, completion: Completion) -> float | None:
        """Return the share, or None."""
        equations = _EQUATION.findall(completion.text)
        right = [self._is_right(*equation) for equation in equations]
        return sum(right) / len(right) if right else None

    def _is_right(self, left: str, operator: str, right: str, result: str) -> bool:
        a, b = int(left), int(right)
        value = {"+": a + b, "-": a - b, "*": a * b}[operator]
        return abs(value - int(result)) <= self._tolerance
