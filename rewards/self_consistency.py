"""Self-consistency: the answer that most draws agree on is taken to be right."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from backends import Completion, Prompt
from rewards.answers import canonical, extract_answer
from rewards.errors import RewardError
from rewards.registry import register
from rewards.voting import VotingReward


@register("self_consistency")
class SelfConsistency(VotingReward):
    """Reward 1 for the answer that most draws of the group share, 0 for others; a group reward.

    Each completion votes for its final answer, see `VotingReward` for how votes are counted. It is no oracle: it needs
    no key, and is right as far as the model's errors disagree with each other.
    """

    def __init__(self, accumulate: bool = False, extractor: Callable[[str], str | None] | None = None) -> None:
        """Configure the vote.

        Args:
            accumulate: Keep the votes of earlier steps for the rest of a run, see `VotingReward`.
            extractor: Finds the final answer in a text, None where there is none; `extract_answer` by default.
        """
        super().__init__(accumulate=accumulate)
        self._extract = extractor or extract_answer

    async def ballots(self, prompt: Prompt, completions: Sequence[Completion]) -> list[str | None]:
        """Return the canonical form of each answer."""
        return [canonical(self.answer(completion) or "") for completion in completions]

    def answer(self, completion: Completion) -> str | None:
        """Return the final answer as it is written in the completion."""
        try:
            return (self._extract(completion.text) or "").strip() or None
        except Exception as error:
            raise RewardError(f"the answer extractor failed: {type(error).__name__}: {error}") from error
