"""Rewards that judge one response at a time: identical ones once, many at a time, each within a time limit."""

from __future__ import annotations

import copy
import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Self

from backends import Completion, Prompt
from rewards._attempts import attempts, failures
from rewards.base import Reward, checked_verdicts
from rewards.errors import described
from rewards.timeouts import within

_log = logging.getLogger(__name__)
_MOST_PROBLEMS = 3
"""How many different ones are told of one call."""


class PointwiseReward(Reward):
    """A reward whose verdict depends on prompt and completion alone; subclasses say how to `judge` one completion.

    Failed draws have no verdict and are never judged. A judgement that raises, takes too long or gives no number costs
    that verdict, which is listed in `problems`, and logged once in a run. If it happens to all of them, nothing was
    judged and `score` raises.
    """

    pointwise = True

    judgment_limit: float | None = 60.0
    """Seconds after which one judgement is given up; None for no limit."""

    concurrency: int | None = None
    """Most judgements of one call at the same time; None for all at once."""

    _verdicts: dict[Hashable, float | None] | None = None
    """Within a run, what was judged in it already."""

    _logged: set[str] | None = None
    """Within a run, what went wrong in it already."""

    @abstractmethod
    async def judge(self, prompt: Prompt, completion: Completion) -> float | None:
        """Return the reward of one completion, or None for "no verdict"; it must not block the event loop.

        Raises:
            Exception: Any: it could not be judged.
        """

    def identity(self, completion: Completion) -> Hashable:
        """Return what a verdict depends on; completions that are equal in it are judged once. By default, the text."""
        return completion.text

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        """Return one verdict per completion, None for failed draws and failed judgements.

        Raises:
            RewardError: No completion could be judged.
        """
        keys = [None if c.finish_reason == "error" else (self.identity(c),) for c in completions]
        verdicts = {} if self._verdicts is None else self._verdicts
        todo = {key: c for key, c in zip(keys, completions, strict=True) if key is not None and key not in verdicts}
        outcomes = dict(zip(todo, await self._judge_all(prompt, list(todo.values())), strict=True))
        of_the_group = {key: outcomes.get(key) for key in keys if key is not None}
        self._report(failures(list(of_the_group.values()), what=f"reward {self.label!r}"), judged=len(todo))
        verdicts |= {key: outcome for key, outcome in outcomes.items() if not isinstance(outcome, Exception)}
        return [None if key is None else verdicts.get(key) for key in keys]

    def session(self) -> Self:
        """Return a copy that judges what recurs in a run only once."""
        session = copy.copy(self)
        session._verdicts, session._logged = {}, set()
        return session

    def _report(self, errors: Sequence[Exception], *, judged: int) -> None:
        counted = Counter(map(described, errors)).most_common(_MOST_PROBLEMS)
        self.problems = [
            f"reward {self.label!r} gave no verdict on {count} of {judged} responses: {problem}"
            for problem, count in counted
        ]
        logged = set() if self._logged is None else self._logged
        for message, (problem, _) in zip(self.problems, counted, strict=True):
            if problem not in logged:
                _log.warning(message)
            logged.add(problem)

    async def _judge_all(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | Exception | None]:
        async def attempt(completion: Completion) -> float | None:
            value = await within(self.judgment_limit, self.judge(prompt, completion), what=f"reward {self.label!r}")
            (verdict,) = checked_verdicts([value], 1, self.label)
            return verdict

        return await attempts(attempt, completions, at_once=self.concurrency)
