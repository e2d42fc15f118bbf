"""The oracle for questions with a known answer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from backends import Completion, Prompt
from rewards.answers import canonical, extract_answer
from rewards.base import Reward
from rewards.errors import RewardSpecError
from rewards.registry import register


@register("math_answer")
class MathAnswer(Reward):
    """Reward 1 for completions whose final answer equals a known one, 0 for others; for evaluation and tests.

    It knows the answer, so what it guides says nothing about how well a question would be solved without that. Answers
    are compared by their canonical form, see `rewards.canonical`; a completion without an answer gets 0, a failed draw
    no verdict.
    """

    pointwise = True
    maximum = 1.0

    def __init__(self, gold: str | int | float) -> None:
        r"""Set the answer.

        Args:
            gold: The right answer, such as ``42``, ``"1,234"`` or ``r"\frac{1}{2}"``.

        Raises:
            RewardSpecError: The answer is empty or not finite.
        """
        if isinstance(gold, float) and not math.isfinite(gold):
            raise RewardSpecError(f"the gold answer must be a finite number or a text, not {gold}")
        self._gold = canonical(str(gold))
        if not self._gold:
            raise RewardSpecError(f"the gold answer is empty: {gold!r}")

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        """Return 1 for right answers, 0 for wrong or missing ones, None for failed draws."""
        return [self._judge(completion) for completion in completions]

    def answer(self, completion: Completion) -> str | None:
        """Return the final answer as it is written in the completion."""
        return extract_answer(completion.text)

    def _judge(self, completion: Completion) -> float | None:
        if completion.finish_reason == "error":
            return None
        return float(canonical(self.answer(completion) or "") == self._gold)
