"""Rewards that judge one response at a time: identical ones once, many at a time, each within a time limit."""

from __future__ import annotations

import asyncio
import copy
import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NoReturn, Self

from backends import Completion, Prompt
from rewards.base import Reward, checked_verdict
from rewards.errors import RewardError, failed
from rewards.timeouts import within

_log = logging.getLogger(__name__)
_MOST_PROBLEMS = 3
"""How many different ones are told of one call."""


class PointwiseReward(Reward):
    """A reward whose verdict depends on prompt and completion alone; subclasses say how to `judge` one completion.

    Failed draws have no verdict and are never judged. A judgement that raises, takes too long or gives no finite number
    costs that verdict, which is logged and listed in `problems`. If it happens to all of them, nothing was judged and
    `score` raises.
    """

    pointwise = True

    timeout: float | None = 60.0
    """Seconds that one judgement may take; None for no limit."""

    concurrency: int | None = None
    """Most judgements of one call at the same time; None for all at once."""

    _verdicts: dict[Hashable, float | None] | None = None
    """Within a run, what was judged in it already."""

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
        failures = [outcome for outcome in outcomes.values() if isinstance(outcome, Exception)]
        if failures and all(key is None or isinstance(outcomes.get(key), Exception) for key in keys):
            self._raise(failures[0])
        self._report(failures, judged=len(todo))
        verdicts |= {key: outcome for key, outcome in outcomes.items() if not isinstance(outcome, Exception)}
        return [None if key is None else verdicts.get(key) for key in keys]

    def session(self) -> Self:
        """Return a copy that judges what recurs in a run only once."""
        session = copy.copy(self)
        session._verdicts = {}
        return session

    def _report(self, failures: Sequence[Exception], *, judged: int) -> None:
        problems = Counter(f"{type(error).__name__}: {error}" for error in failures)
        self.problems = [
            f"reward {self.name!r} gave no verdict on {count} of {judged} responses: {problem}"
            for problem, count in problems.most_common(_MOST_PROBLEMS)
        ]
        for problem in self.problems:
            _log.warning(problem)

    def _raise(self, error: Exception) -> NoReturn:
        """Raise what stands for all judgements having failed like this one."""
        if isinstance(error, RewardError):
            raise error
        raise failed(f"reward {self.name!r}", error) from error

    async def _judge_all(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | Exception | None]:
        places = asyncio.Semaphore(self.concurrency or max(1, len(completions)))

        async def attempt(completion: Completion) -> float | Exception | None:
            async with places:
                try:
                    verdict = await within(self.timeout, self.judge(prompt, completion), what=f"reward {self.name!r}")
                    return checked_verdict(verdict, self.name)
                except Exception as error:  # Data, not a crash: it costs one verdict.
                    return error

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(attempt(completion)) for completion in completions]
        return [task.result() for task in tasks]
