"""The contract of a reward r(y, x_0): judge complete responses to one prompt."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, SupportsFloat

from backends import Completion, Prompt
from rewards.errors import RewardError


class Reward(ABC):
    """Judges complete responses; higher is better.

    A *pointwise* reward looks at one response at a time (derive from `PointwiseReward`); a *group* reward, such as
    self-consistency, at all that are scored in one call. `Completion.log_weight` says for how many draws a completion
    stands; only group rewards use it.
    """

    name: str = ""
    """What the reward is registered as; `rewards.register` sets it on the class."""

    pointwise: bool = False
    """Whether a verdict depends on the completion alone, so that it holds in any group and is asked for only once."""

    minimum: float | None = None
    """The smallest finite reward that there is, where that is known."""

    maximum: float | None = None
    """The largest reward that there is, where that is known; it tells how much a rare success would count for."""

    needs: frozenset[str] = frozenset()
    """Names of the `backends.Capabilities` without which there is nothing to judge; checked before anything runs."""

    time_limit: float | None = 600.0
    """Seconds after which the sampler gives up on one call of `score`, a last resort; None for no limit. Built-in
    rewards limit the single judgement, usually by an argument ``timeout``."""

    problems: Sequence[str] = ()
    """What went wrong in the last call of `score` without voiding it, in words; the sampler reports it."""

    @property
    def label(self) -> str:
        """What the reward is called in messages: its name, or that of its class."""
        return self.name or type(self).__name__

    @abstractmethod
    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        """Return one reward per completion, in order: a finite number, minus infinity, or None.

        Minus infinity means that the response must not be chosen. None means "no verdict" (an abstention, a judge that
        failed): the completion is left out of the estimate, which is not the same as 0. A completion whose draw failed
        (finish reason ``error``) never has one. Neither the prompt nor the completions may be changed.

        Raises:
            RewardError: Nothing could be judged.
        """

    def answer(self, completion: Completion) -> str | None:
        """Return the final answer that the reward reads in a completion, for people and for ``Result.answer``."""
        return None

    def session(self) -> Reward:
        """Return the reward to use for one run; a reward that keeps state across the steps of a run returns a copy."""
        return self

    def begin_step(self) -> None:  # noqa: B027 - most rewards keep no state
        """Take note that a new step begins; until the next, calls of `score` are about one group, which may grow."""

    async def aclose(self) -> None:  # noqa: B027 - most rewards hold nothing and need not override it
        """Free what the reward holds; harmless when called twice."""


async def score_drawn(
    completions: Sequence[Completion],
    judge: Callable[[list[Completion]], Awaitable[Sequence[float | None]]],
) -> list[float | None]:
    """Have those completions judged whose draw did not fail, if there are any; the others have no verdict.

    Args:
        completions: All of them.
        judge: Returns one verdict per completion, in order.
    """
    drawn = [completion for completion in completions if completion.finish_reason != "error"]
    verdicts = iter(await judge(drawn) if drawn else [])
    return [None if completion.finish_reason == "error" else next(verdicts) for completion in completions]


def checked_verdicts(values: Any, count: int, label: str) -> list[float | None]:
    """Return what a judge returned, as floats and None; the rule is that of `Reward.score`.

    Args:
        values: What it returned.
        count: How many verdicts there have to be.
        label: What the reward is called, see `Reward.label`.

    Raises:
        RewardError: It is no list of as many verdicts.
    """
    try:
        given = list(values)
    except TypeError:
        raise RewardError(f"reward {label!r} must return a list, not {type(values).__name__}") from None
    if len(given) != count:
        raise RewardError(f"reward {label!r} returned {len(given)} values for {count} completions")
    return [_checked(value, label) for value in given]


def _checked(value: Any, label: str) -> float | None:
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, SupportsFloat) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number) or number == math.inf:
        raise RewardError(f"reward {label!r} must return finite numbers, -inf or None, not {value!r:.80}")
    return number
