"""Rewards by vote: completions that agree with each other are taken to be right."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from backends import Completion, Prompt
from rewards._weights import check_weights
from rewards.base import Reward, score_drawn

_TIE = 1e-4  # relative; above the rounding of weights scored in float32, below one vote among thousands


class UncertainBallot(str):
    """A ballot that may mean the same as others: it votes as what it is, and where it does not win, has no verdict."""

    __slots__ = ()


class VotingReward(Reward):
    """Reward 1 for completions of the group whose ballot wins, 0 for others; subclasses say what a ballot is.

    Each completion votes with weight ``exp(log_weight)``. Only ballots that at least two completions cast can win:
    agreement of independent draws is the evidence, and one draw agrees with nothing, however large its importance
    weight is. Nor does such a draw void the agreement of the others: the winner is the shared ballot of the largest
    weight. If none is shared, all get 0, and the sampler falls back to the model. Ballots that tie get 1 each, so that
    nothing depends on the order of the completions.

    A completion without a ballot has no vote and reward 0; a failed draw has no vote and no verdict. A completion of
    weight 0 (``log_weight`` minus infinity) stands for no draw: it does not vote, but is judged.
    """

    minimum, maximum = 0.0, 1.0

    def __init__(self, *, accumulate: bool = False) -> None:
        """Configure the vote.

        Args:
            accumulate: Keep the votes of earlier steps for the rest of a run, as the code released with the paper does.
                Off by default, because votes of candidates that were discarded since then still count, so what is
                rewarded differs from step to step and is no fixed r(y, x_0).
        """
        self._accumulate = accumulate

    @abstractmethod
    async def ballots(self, prompt: Prompt, completions: Sequence[Completion]) -> list[str | None]:
        """Return what each completion votes for, ``""`` for nothing, None where that cannot be told (no verdict).

        An `UncertainBallot` is between the two: agreement with it is agreement, but to lose says nothing.
        No completion is a failed draw.
        """

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        """Return 1 for completions with a winning ballot, 0 for others, None for failed draws.

        Raises:
            RewardError: A log-weight is NaN or plus infinity, or the ballots could not be read.
        """
        return await score_drawn(completions, lambda drawn: self._judge(prompt, drawn, {}))

    def session(self) -> Reward:
        """Return a copy, which with ``accumulate`` keeps the votes of one run."""
        reward = copy.copy(self)
        return _Run(reward) if self._accumulate else reward

    async def _judge(self, prompt: Prompt, drawn: list[Completion], tally: dict[str, _Votes]) -> list[float | None]:
        """Add the votes of a group to the tally, which is changed, then judge the group by it."""
        check_weights(drawn)
        cast = await self.ballots(prompt, drawn)
        weights: defaultdict[str, list[float]] = defaultdict(list)
        for ballot, completion in zip(cast, drawn, strict=True):
            if ballot and completion.log_weight > -math.inf:
                weights[ballot].append(completion.log_weight)
        for ballot, log_weights in weights.items():
            tally[ballot] = tally.get(ballot, _NO_VOTES).plus(log_weights)
        winners = _winners(tally)
        return [
            None
            if ballot is None or (isinstance(ballot, UncertainBallot) and ballot not in winners)
            else float(ballot in winners)
            for ballot in cast
        ]


class _Run(Reward):
    """A vote over all groups of one run."""

    def __init__(self, reward: VotingReward) -> None:
        self.name = reward.label
        self.minimum, self.maximum = reward.minimum, reward.maximum
        self.needs = reward.needs
        self.time_limit = reward.time_limit
        self._reward = reward
        self._earlier: dict[str, _Votes] = {}
        """Votes of the steps before this one."""
        self._tally: dict[str, _Votes] = {}
        """The same with those of this step's last group."""

    def begin_step(self) -> None:
        self._earlier = self._tally

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        tally = dict(self._earlier)
        verdicts = await score_drawn(completions, lambda drawn: self._reward._judge(prompt, drawn, tally))
        self._tally = tally
        self.problems = self._reward.problems
        return verdicts

    def answer(self, completion: Completion) -> str | None:
        return self._reward.answer(completion)


@dataclass(frozen=True, slots=True)
class _Votes:
    """Votes for one ballot: from how many completions, and the log of their total weight."""

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
    shared = {ballot: votes.log_weight for ballot, votes in tally.items() if votes.voters >= 2}
    if not shared:
        return set()
    largest = max(shared.values())
    return {ballot for ballot, log_weight in shared.items() if largest - log_weight <= _TIE}
