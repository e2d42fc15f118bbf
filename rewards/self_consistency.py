"""Self-consistency: the answer that most draws agree on is taken to be right."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backends import Completion, Prompt
from rewards.answers import canonical, extract_answer
from rewards.base import Reward
from rewards.errors import RewardError
from rewards.registry import register

_TIE = 1e-4  # relative; above the rounding of weights scored in float32, below one vote among thousands


@register("self_consistency")
class SelfConsistency(Reward):
    """Reward 1 for the answer that most draws of the group share, 0 for others; a group reward.

    Each completion votes for the canonical form of its answer with weight ``exp(log_weight)``. Only answers that at
    least two completions hold can win: agreement of independent draws is the evidence, and one draw agrees with
    nothing, however large its importance weight is. Nor does such a draw void the agreement of the others: the winner
    is the shared answer of the largest weight. If no answer is shared, all get 0, and the sampler falls back to the
    model. Answers that tie get 1 each, so that nothing depends on the order of the completions.

    A completion without an answer has no vote and reward 0; a failed draw has no vote and no verdict. A completion of
    weight 0 (``log_weight`` minus infinity) stands for no draw: it does not vote, but is judged.
    """

    maximum = 1.0

    def __init__(self, accumulate: bool = False, extractor: Callable[[str], str | None] | None = None) -> None:
        """Configure the vote.

        Args:
            accumulate: Keep the votes of earlier steps for the rest of a run, as the code released with the paper does.
                Off by default, because votes of candidates that were discarded since then still count, so what is
                rewarded differs from step to step and is no fixed r(y, x_0).
            extractor: Finds the final answer in a text, None where there is none; `extract_answer` by default.
        """
        self._accumulate = accumulate
        self._extract = extractor or extract_answer

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        """Return 1 for completions with a winning answer, 0 for others, None for failed draws.

        Raises:
            RewardError: A log-weight is NaN or plus infinity, or the extractor failed.
        """
        return self._judge(completions, {})

    def answer(self, completion: Completion) -> str | None:
        """Return the final answer as it is written in the completion."""
        try:
            return (self._extract(completion.text) or "").strip() or None
        except Exception as error:
            raise RewardError(f"the answer extractor failed: {type(error).__name__}: {error}") from error

    def session(self) -> Reward:
        """Return a reward that keeps the votes of one run, with ``accumulate``; otherwise this one."""
        return _Run(self) if self._accumulate else self

    def _judge(self, completions: Sequence[Completion], tally: dict[str, _Votes]) -> list[float | None]:
        """Add the votes of a group to the tally, which is changed, then judge the group by it."""
        answers = [self._read(completion) for completion in completions]
        ballots: defaultdict[str, list[float]] = defaultdict(list)
        for answer, completion in zip(answers, completions, strict=True):
            if answer and completion.log_weight > -math.inf:
                ballots[answer].append(completion.log_weight)
        for answer, log_weights in ballots.items():
            tally[answer] = tally.get(answer, _NO_VOTES).plus(log_weights)
        winners = _winners(tally)
        return [None if answer is None else float(answer in winners) for answer in answers]

    def _read(self, completion: Completion) -> str | None:
        """Return the canonical answer, empty if there is none, or None for a failed draw."""
        if completion.finish_reason == "error":
            return None
        if math.isnan(completion.log_weight) or completion.log_weight == math.inf:
            raise RewardError(f"the log-weight of a completion must be finite or -inf, not {completion.log_weight}")
        return canonical(self.answer(completion) or "")


class _Run(Reward):
    """Self-consistency over all groups of one run."""

    def __init__(self, reward: SelfConsistency) -> None:
        self.name = reward.name
        self.maximum = reward.maximum
        self._reward = reward
        self._earlier: dict[str, _Votes] = {}
        """Votes of the steps before this one."""
        self._tally: dict[str, _Votes] = {}
        """The same with those of this step's last group."""

    def begin_step(self) -> None:
        self._earlier = self._tally

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        self._tally = dict(self._earlier)
        return self._reward._judge(completions, self._tally)

    def answer(self, completion: Completion) -> str | None:
        return self._reward.answer(completion)


@dataclass(frozen=True, slots=True)
class _Votes:
    """Votes for one answer: from how many completions, and the log of their total weight."""

    voters: int
    log_weight: float

    def plus(self, log_weights: list[float]) -> _Votes:
        terms = [self.log_weight, *log_weights]
        largest = max(terms)
        # `fsum` rounds once, whatever the order of its terms.
        total = largest + math.log(math.fsum(math.exp(term - largest) for term in terms))
        return _Votes(self.voters + len(log_weights), total)


_NO_VOTES = _Votes(0, -math.inf)


def _winners(tally: dict[str, _Votes]) -> set[str]:
    shared = {answer: votes.log_weight for answer, votes in tally.items() if votes.voters >= 2}
    if not shared:
        return set()
    largest = max(shared.values())
    return {answer for answer, log_weight in shared.items() if largest - log_weight <= _TIE}
