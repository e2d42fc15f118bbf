"""The oracle for questions whose answer is a given text."""

from __future__ import annotations

from backends import Completion, Prompt
from rewards.answers import stated_answer
from rewards.errors import RewardSpecError
from rewards.pointwise import PointwiseReward
from rewards.registry import register


@register("exact_match", pure=True)
class ExactMatch(PointwiseReward):
    r"""Reward 1 for responses that are a given text, 0 for others; an oracle.

    Compared is the answer that the response marks by ``####`` or ``\boxed{…}``, or all of it where nothing is marked,
    without regard to how much white space there is. For numbers and formulas see ``math_answer``.
    """

    minimum, maximum = 0.0, 1.0

    def __init__(self, gold: str | list[str], ignore_case: bool = False) -> None:
        """Set the text.

        Args:
            gold: The right answer, or a list of all that are right.
            ignore_case: Whether upper and lower case are the same.

        Raises:
            RewardSpecError: There is no right answer, or one is empty.
        """
        self._ignore_case = ignore_case
        self._golds = {self._normal(text) for text in ([gold] if isinstance(gold, str) else gold)}
        if not self._golds or "" in self._golds:
            raise RewardSpecError(
                f"the gold answer must be a text, or a list of texts, that is not empty, not {gold!r}"
            )

    async def judge(self, prompt: Prompt, completion: Completion) -> float:
        """Return 1 for a right answer, 0 for another or none."""
        return float(self._normal(self.answer(completion) or "") in self._golds)

    def answer(self, completion: Completion) -> str | None:
        """Return what is compared, as it is written."""
        return stated_answer(completion.text) or completion.text.strip() or None

    def _normal(self, text: str) -> str:
        text = " ".join(text.split())
        return text.casefold() if self._ignore_case else text
