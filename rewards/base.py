"""The contract of a reward r(y, x_0): judge complete responses to one prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from backends import Completion, Prompt


class Reward(ABC):
    """Judges complete responses; higher is better.

    A *pointwise* reward looks at one response at a time; a *group* reward, such as self-consistency, at all that are
    scored in one call. `Completion.log_weight` says for how many draws a completion stands; only group rewards use it.
    """

    name: str = ""
    """What the reward is registered as; `rewards.register` sets it on the class."""

    pointwise: bool = False
    """Whether a verdict depends on the completion alone, so that it holds in any group and is asked for only once."""

    maximum: float | None = None
    """The largest reward that there is, where that is known; it tells how much a rare success would count for."""

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
