"""The oracle for questions with a known answer."""

from __future__ import annotations

import math
from typing import Self

from backends import Completion, Prompt
from rewards.answers import canonical, extract_answer
from rewards.equivalence import read_answers
from rewards.errors import RewardError, RewardSpecError
from rewards.pointwise import PointwiseReward
from rewards.registry import register
from rewards.shared_workers import PATIENCE, Allowance


@register("math_answer", pure=True)
class MathAnswer(PointwiseReward):
    """Reward 1 for completions whose final answer equals a known one, 0 for others; for evaluation and tests.

    An oracle: it knows the answer, so what it guides says nothing about how well a question would be solved without
    that. Answers are compared by value, see `rewards.equivalence_keys`; a completion without an answer gets 0. One
    whose answer could not be read, because that failed or was given up in this run, has no verdict, unless its text is
    right.
    """

    minimum, maximum = 0.0, 1.0
    concurrency = Allowance.at_once  # The time of a judgement begins when it is its turn.

    _allowance: Allowance | None = None
    """What this run has left of the processes that read answers; None outside of one."""

    def __init__(self, gold: str | int | float) -> None:
        r"""Set the answer.

        Args:
            gold: The right answer, such as ``42``, ``"1,234"`` or ``r"\frac{1}{2}"``.

        Raises:
            RewardSpecError: The answer is empty or not finite.
        """
        if isinstance(gold, float) and not math.isfinite(gold):
            raise RewardSpecError(f"the gold answer must be a finite number or a text, not {gold}")
        self._gold = str(gold)
        if not canonical(self._gold):
            raise RewardSpecError(f"the gold answer is empty: {gold!r}")

    async def judge(self, prompt: Prompt, completion: Completion) -> float:
        """Return 1 for a right answer, 0 for a wrong or missing one.

        Raises:
            RewardError: The answers differ as texts, and one of them could not be read.
        """
        # The right answer first, whatever the others take of the allowance.
        (gold,) = await read_answers([self._gold], allowance=self._allowance)
        (found,) = await read_answers([self.answer(completion) or ""], allowance=self._allowance)
        failure = gold.failure or found.failure
        if failure is not None and found.key and found.key != gold.key:
            raise RewardError(f"an answer could not be read: {failure}") from failure
        return float(found.key == gold.key)

    def session(self) -> Self:
        """Return a copy with an allowance for one run, which judges what recurs only once."""
        session = super().session()
        session._allowance = Allowance(patience=PATIENCE)
        return session

    def answer(self, completion: Completion) -> str | None:
        """Return the final answer as it is written in the completion."""
        return extract_answer(completion.text)
