"""Self-consistency: the answer that most draws agree on is taken to be right."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Literal

from backends import Completion, Prompt
from rewards.answers import canonical, extract_answer
from rewards.base import Reward
from rewards.choice import extract_choice
from rewards.equivalence import read_answers
from rewards.errors import RewardError
from rewards.registry import register
from rewards.shared_workers import PATIENCE, Allowance
from rewards.voting import UncertainBallot, VotingReward

_log = logging.getLogger(__name__)
_EXTRACTORS: dict[str, Callable[[str], str | None]] = {"answer": extract_answer, "choice": extract_choice}


@register("self_consistency", pure=True)
class SelfConsistency(VotingReward):
    """Reward 1 for the answer that most draws of the group share, 0 for others; a group reward.

    Each completion votes for its final answer, see `VotingReward` for how votes are counted. It is no oracle: it needs
    no key, and is right as far as the model's errors disagree with each other. Answers of one value vote together,
    however they are written, see `rewards.equivalence_keys`. An answer that could not be read, because that failed or
    was given up in this run, votes as text, and has no verdict if it does not win.
    """

    def __init__(
        self,
        accumulate: bool = False,
        extractor: Literal["answer", "choice"] | Callable[[str], str | None] = "answer",
        equivalence: Literal["math", "text"] = "math",
    ) -> None:
        """Configure the vote.

        Args:
            accumulate: Keep the votes of earlier steps for the rest of a run, see `VotingReward`.
            extractor: Finds the final answer: ``answer`` is `extract_answer`, ``choice`` is `extract_choice`, for
                multiple choice, or a function of the text that returns None where there is none.
            equivalence: Whether answers vote together if they have one value, or only if they have one
                `rewards.canonical` text.
        """
        super().__init__(accumulate=accumulate)
        self._extract = extractor if callable(extractor) else _EXTRACTORS[extractor]
        self._by_value = equivalence == "math"
        self._allowance: Allowance | None = None
        self._logged = False
        """Whether this run has logged that answers could not be read."""

    async def ballots(self, prompt: Prompt, completions: Sequence[Completion]) -> list[str | None]:
        """Return the key of each answer."""
        answers = [self.answer(completion) or "" for completion in completions]
        if not self._by_value:
            return [canonical(answer) for answer in answers]
        readings = await read_answers(answers, allowance=self._allowance)
        self._report([reading.failure for reading in readings if reading.failure is not None], len(readings))
        return [reading.key if reading.failure is None else UncertainBallot(reading.key) for reading in readings]

    def session(self) -> Reward:
        """Return a copy with an allowance for one run; see `VotingReward.session`."""
        session = copy.copy(self)
        session._allowance = Allowance(patience=PATIENCE)
        return VotingReward.session(session)

    def _report(self, failures: Sequence[RewardError], count: int) -> None:
        self.problems = ()
        if failures:
            name, what = f"reward {self.label!r}", f"could not read {len(failures)} of {count} answers"
            self.problems = [f"{name} {what}, which have no verdict unless their text wins: {failures[0]}"]
            if not self._logged:
                _log.warning(self.problems[0])
            self._logged = self._allowance is not None

    def answer(self, completion: Completion) -> str | None:
        """Return the final answer as it is written in the completion."""
        try:
            return (self._extract(completion.text) or "").strip() or None
        except Exception as error:
            raise RewardError(f"the answer extractor failed: {type(error).__name__}: {error}") from error
