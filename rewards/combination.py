"""Rewards made of other rewards: sum, product, gate, clip and rescale.

Each part is given as anything that `rewards.build` takes, so a specification can be nested:
``gate:condition={"name": "json_schema", "schema": {…}},reward=self_consistency``.
"""

from __future__ import annotations

import contextlib
import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from backends import Completion, Prompt
from backends.concurrency import all_of
from rewards.base import Reward, checked_verdicts, score_drawn
from rewards.errors import RewardError, RewardSpecError, RewardTimeoutError, failed
from rewards.registry import RewardSpec, build, register
from rewards.timeouts import within

Verdicts = list[float | None]


class Combination(Reward):
    """A reward made of others, its parts; subclasses say how.

    Parts judge at the same time, each within its own ``time_limit``. If one of them fails, nothing is judged. A
    completion on which a part that counts has no verdict has none; that is not the same as 0. Minus infinity is a
    veto: what one part forbids, a sum, a product or a rescaled reward forbids, whatever the others say and whatever its
    sign; only what counts 0 times forbids nothing. To a gate and to ``clip`` it is a very small number.

    Sessions, steps and problems are passed on. Parts that were built here, from a specification, are closed with the
    combination; a reward that was given as an object stays the caller's.

    ``maximum`` is a bound, which may be out of reach where parts exclude each other; it is known where it follows from
    those of the parts.
    """

    time_limit = None  # The parts have theirs.

    def __init__(self, parts: Mapping[str, RewardSpec]) -> None:
        """Build the parts.

        Args:
            parts: Their specifications, by what they are called in messages.

        Raises:
            RewardSpecError: A part cannot be built; the message says which.
        """
        self._parts = [_Part.built(path, spec) for path, spec in parts.items()]
        self.pointwise = all(part.reward.pointwise for part in self._parts)
        self.needs = frozenset().union(*(part.reward.needs for part in self._parts))

    @abstractmethod
    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> Verdicts:
        """Return the verdicts on completions none of which is a failed draw; whatever is not finite is refused."""

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> Verdicts:
        """Return one verdict per completion, None for failed draws and where a part has none.

        Raises:
            RewardError: A part failed, or numbers grew too large.
        """
        self.problems = ()
        for part in self._parts:
            part.called = False

        async def judge(drawn: list[Completion]) -> Verdicts:
            return checked_verdicts(await self.judge(prompt, drawn), len(drawn), self.label)

        verdicts = await score_drawn(completions, judge)
        self.problems = list(dict.fromkeys(problem for part in self._parts for problem in part.problems))
        return verdicts

    def answer(self, completion: Completion) -> str | None:
        """Return the final answer that the first part reads that reads one."""
        return next((answer for part in self._parts if (answer := part.reward.answer(completion)) is not None), None)

    def session(self) -> Self:
        """Return a combination of the parts' sessions; closing it does nothing, because they belong to the parts."""
        session = copy.copy(self)
        session._parts = [_Part(part.path, part.reward.session(), owned=False) for part in self._parts]
        return session

    def begin_step(self) -> None:
        """Tell the parts."""
        for part in self._parts:
            part.reward.begin_step()

    async def aclose(self) -> None:
        """Close the parts that were built here, all of them even if one fails to close."""
        async with contextlib.AsyncExitStack() as stack:
            for part in self._parts:
                if part.owned:
                    stack.push_async_callback(part.reward.aclose)

    def _bound(self, minimum: float | None, maximum: float | None) -> None:
        """Take note of the smallest and the largest verdict that there can be, as far as numbers go."""
        self.minimum, self.maximum = (
            bound if bound is not None and math.isfinite(bound) else None for bound in (minimum, maximum)
        )

    async def _all(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdicts]:
        """Return the verdicts of each part; the first failure ends the others."""
        return await all_of([part.score(prompt, completions) for part in self._parts])


class _Part:
    """One of the rewards that a combination is made of.

    Args:
        path: What it is called in messages.
        reward: The reward.
        owned: Whether it is closed with the combination.
    """

    def __init__(self, path: str, reward: Reward, *, owned: bool) -> None:
        self.path = path
        self.reward = reward
        self.owned = owned
        self.called = False

    @classmethod
    def built(cls, path: str, spec: RewardSpec) -> Self:
        try:
            reward = build(spec)
        except RewardSpecError as error:
            raise RewardSpecError(f"{path}: {error}") from error
        return cls(path, reward, owned=reward is not spec)

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """The smallest and the largest verdict that there can be, as far as that is known."""
        return self.reward.minimum, self.reward.maximum

    @property
    def problems(self) -> Sequence[str]:
        """What went wrong in the last call, if it was called in this one of the combination."""
        return self.reward.problems if self.called else ()

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> Verdicts:
        self.called = True
        label, work = self.reward.label, self.reward.score(prompt, completions)
        try:
            verdicts = await within(self.reward.time_limit, work, what=f"reward {label!r}")
            return checked_verdicts(verdicts, len(completions), label)
        except RewardTimeoutError as error:
            raise RewardTimeoutError(f"{self.path}: {error}") from error
        except RewardError as error:
            raise RewardError(f"{self.path}: {error}") from error
        except Exception as error:  # A reward may be foreign code.
            raise failed(f"{self.path}: reward {label!r}", error) from error


@register("weighted_sum")
class WeightedSum(Combination):
    """Reward the sum of several rewards, each times its weight."""

    def __init__(self, rewards: Sequence[RewardSpec], weights: Sequence[float]) -> None:
        """Build the parts.

        Args:
            rewards: The rewards.
            weights: As many numbers; negative ones make a reward a penalty.

        Raises:
            RewardSpecError: A reward cannot be built, there is none, or the weights do not fit.
        """
        super().__init__(_listed(rewards))
        self._weights = [_finite(f"weights[{i}]", weight) for i, weight in enumerate(weights)]
        if len(self._weights) != len(self._parts):
            raise RewardSpecError(f"{len(self._parts)} rewards need as many weights, not {len(self._weights)}")
        bounds = [_scaled(part.bounds, weight) for part, weight in zip(self._parts, self._weights, strict=True)]
        self._bound(*(_known(sum, side) for side in zip(*bounds, strict=True)))

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> Verdicts:
        """Return the sums."""
        parts = zip(self._weights, await self._all(prompt, completions), strict=True)
        counting = [verdicts if weight else _without_vetoes(verdicts) for weight, verdicts in parts]
        return [
            _combined(lambda values: sum(w * v for w, v in zip(self._weights, values, strict=True)), verdicts)
            for verdicts in zip(*counting, strict=True)
        ]


@register("product")
class Product(Combination):
    """Reward the product of several rewards, so that a response must be good by all of them."""

    def __init__(self, rewards: Sequence[RewardSpec]) -> None:
        """Build the parts.

        Args:
            rewards: The rewards; those that are never negative make a product that can be understood.

        Raises:
            RewardSpecError: A reward cannot be built, or there is none.
        """
        super().__init__(_listed(rewards))
        bounds = [part.bounds for part in self._parts]
        if all(low is not None and low >= 0 for low, _ in bounds):  # Two large negative numbers have a large product.
            self._bound(*(_known(math.prod, side) for side in zip(*bounds, strict=True)))

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> Verdicts:
        """Return the products."""
        return [_combined(math.prod, verdicts) for verdicts in zip(*await self._all(prompt, completions), strict=True)]


@register("gate")
class Gate(Combination):
    """Reward only responses that meet a condition; others get 0.

    The reward is asked about those that pass alone, after the condition: votes, for example, are counted among valid
    responses. A response on which the condition has no verdict has none; one that does not pass needs no other.
    """

    def __init__(
        self, condition: RewardSpec, reward: RewardSpec, *, threshold: float = 0.0, otherwise: float = 0.0
    ) -> None:
        """Build the parts.

        Args:
            condition: The reward that decides who passes.
            reward: The reward of those that pass.
            threshold: A response passes if the condition rewards it with more than this.
            otherwise: The reward of a response that does not pass.

        Raises:
            RewardSpecError: A reward cannot be built, or a number is not finite.
        """
        super().__init__({"condition": condition, "reward": reward})
        self._threshold = _finite("threshold", threshold)
        self._otherwise = _finite("otherwise", otherwise)
        low, high = self._parts[1].bounds
        self._bound(_known(min, (low, self._otherwise)), _known(max, (high, self._otherwise)))

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> Verdicts:
        """Return the reward of those that pass, ``otherwise`` for those that do not."""
        condition, reward = self._parts
        conditions = await condition.score(prompt, completions)
        passing = [
            completion
            for completion, value in zip(completions, conditions, strict=True)
            if value is not None and value > self._threshold
        ]
        verdicts = iter(await reward.score(prompt, passing) if passing else [])
        return [
            None if value is None else next(verdicts) if value > self._threshold else self._otherwise
            for value in conditions
        ]

    def answer(self, completion: Completion) -> str | None:
        """Return the final answer that the reward reads; the condition's would be another thing."""
        return self._parts[1].reward.answer(completion)


@register("clip")
class Clip(Combination):
    """Limit another reward to a range."""

    def __init__(self, reward: RewardSpec, *, low: float | None = None, high: float | None = None) -> None:
        """Build the reward.

        Args:
            reward: The reward.
            low: What smaller rewards become; None for no limit.
            high: What larger rewards become; None for no limit.

        Raises:
            RewardSpecError: The reward cannot be built, or the range is empty or no range.
        """
        super().__init__({"reward": reward})
        self._low = -math.inf if low is None else _finite("low", low)
        self._high = math.inf if high is None else _finite("high", high)
        if low is None and high is None:
            raise RewardSpecError("give at least one of low and high")
        if self._low > self._high:
            raise RewardSpecError(f"low must not be above high, but {low} is above {high}")
        smallest, largest = self._parts[0].bounds
        self._bound(
            low if smallest is None else self._limited(smallest), high if largest is None else self._limited(largest)
        )

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> Verdicts:
        """Return the rewards within the range."""
        (verdicts,) = await self._all(prompt, completions)
        return [None if verdict is None else self._limited(verdict) for verdict in verdicts]

    def _limited(self, value: float) -> float:
        return min(max(value, self._low), self._high)


@register("rescale")
class Rescale(Combination):
    """Reward ``scale`` times another reward, plus ``shift``."""

    def __init__(self, reward: RewardSpec, *, scale: float = 1.0, shift: float = 0.0) -> None:
        """Build the reward.

        Args:
            reward: The reward.
            scale: What it is multiplied by; a negative number turns it around.
            shift: What is added.

        Raises:
            RewardSpecError: The reward cannot be built, or a number is not finite.
        """
        super().__init__({"reward": reward})
        self._scale = _finite("scale", scale)
        self._shift = _finite("shift", shift)
        self._bound(*(_known(sum, (bound, self._shift)) for bound in _scaled(self._parts[0].bounds, self._scale)))

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> Verdicts:
        """Return the rescaled rewards."""
        (verdicts,) = await self._all(prompt, completions)
        counting = verdicts if self._scale else _without_vetoes(verdicts)
        return [_combined(lambda values: self._scale * values[0] + self._shift, [verdict]) for verdict in counting]


def _listed(rewards: Sequence[RewardSpec]) -> dict[str, RewardSpec]:
    if isinstance(rewards, str | Mapping) or not isinstance(rewards, Sequence):
        raise RewardSpecError(f"rewards must be a list of rewards, not {rewards!r:.80}")
    if not rewards:
        raise RewardSpecError("the list of rewards is empty")
    return {f"rewards[{i}]": spec for i, spec in enumerate(rewards)}


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RewardSpecError(f"{name} must be a finite number, not {value!r:.80}")
    return number


def _known(function: Callable[[Sequence[float]], float], values: Iterable[float | None]) -> float | None:
    """Return a function of values that are all known; None if one is not."""
    given = list(values)
    known = [value for value in given if value is not None]
    return function(known) if len(known) == len(given) else None


def _combined(function: Callable[[Sequence[float]], float], verdicts: Sequence[float | None]) -> float | None:
    """Return a function of the parts' verdicts on one completion; minus infinity if one is, None if one is not known.

    Raises:
        RewardError: The result is too large for a number.
    """
    if -math.inf in verdicts:
        return -math.inf
    value = _known(function, verdicts)
    if value is not None and not math.isfinite(value):
        raise RewardError(f"the rewards {verdicts!r:.80} are too large to be combined")
    return value


def _without_vetoes(verdicts: Verdicts) -> Verdicts:
    """Return verdicts that count 0 times, where minus infinity would make no number of 0."""
    return [0.0 if verdict == -math.inf else verdict for verdict in verdicts]


def _scaled(bounds: tuple[float | None, float | None], scale: float) -> tuple[float | None, float | None]:
    """Return the bounds of ``scale`` times something, given its own."""
    if scale == 0:
        return 0.0, 0.0
    low, high = (None if bound is None else scale * bound for bound in bounds)
    return (low, high) if scale > 0 else (high, low)
