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
    """The smallest reward that there is, where that is known."""

    maximum: float | None = None
    """The largest reward that there is, where that is known; it tells how much a rare success would count for."""

    needs: frozenset[str] = frozenset()
    """Names of the `backends.Capabilities` without which there is nothing to judge; checked before anything runs."""

    time_limit: float | None = 600.0
    """Seconds after which the sampler gives up on one call of `score`, a last resort; None for no limit. Built-in
    rewards limit the single judgement, usually by an argument ``timeout``."""

    problems: Sequence[str] = ()
    """What went wrong in the last call of `score` without voiding it, in words; the sampler reports it."""

    @abstractmethod
    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        """Return one reward per completion, in order.

        None means "no verdict" (an abstention, a judge that failed): the completion is left out of the estimate, which
        is not the same as 0. A completion whose draw failed (finish reason ``error``) never has one. Neither the prompt
        nor the completions may be changed.

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


def checked_verdict(value: Any, name: str) -> float | None:
    """Return what a judge returned as a float, or None.

    Raises:
        RewardError: It is neither None nor a finite number.
    """
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, SupportsFloat) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RewardError(f"reward {name!r} must return finite numbers or None, not {value!r:.80}")
    return number
