"""Rewards from plain functions, sync or async, of one completion or of a group."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, SupportsFloat, TypeAlias

from backends import Completion, Prompt
from rewards.base import Reward
from rewards.errors import RewardError, RewardSpecError

Verdict: TypeAlias = float | None
PointwiseFunction: TypeAlias = Callable[[Completion], Verdict | Awaitable[Verdict]]
GroupFunction: TypeAlias = Callable[[list[Completion]], Sequence[Verdict] | Awaitable[Sequence[Verdict]]]

_log = logging.getLogger(__name__)


class FunctionReward(Reward):
    """Judges by a plain function; failed draws never reach it and have no verdict.

    Sync functions run in worker threads, so that they do not hold up the event loop: the completions of one call one
    after another, those of concurrent calls at the same time. Async functions judge all completions of a call at once.

    A pointwise function that raises has no verdict on that completion, which is logged; if it raises on all of them,
    nothing was judged and `score` raises.
    """

    def __init__(
        self, function: PointwiseFunction | GroupFunction, *, group: bool = False, name: str | None = None
    ) -> None:
        """Wrap a function.

        Args:
            function: Takes one completion and returns a finite number, or None for "no verdict"; with ``group``, takes
                the list of completions and returns one such value for each.
            group: Whether the function takes the whole group.
            name: The reward's name; by default the function's.

        Raises:
            RewardSpecError: The function cannot be called with one argument.
        """
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        self._function: Callable[[Any], Any] = function
        self._group = group
        self.pointwise = not group
        self._async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
        try:
            inspect.signature(function).bind(object())
        except TypeError as error:
            argument = "the list of completions" if group else "one completion"
            raise RewardSpecError(f"the function of reward {self.name!r} must take {argument}: {error}") from error
        except ValueError:  # Some builtins have no signature to look at; calling them will tell.
            pass

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        """Return the function's verdicts, None for failed draws.

        Raises:
            RewardError: The function raised on every completion (or on the group), or returned something that is
                neither a finite number nor None.
        """
        drawn = [completion for completion in completions if completion.finish_reason != "error"]
        if not drawn:
            return [None] * len(completions)
        verdicts = iter(await self._judge_group(drawn) if self._group else await self._judge_each(drawn))
        return [None if completion.finish_reason == "error" else next(verdicts) for completion in completions]

    async def _judge_group(self, completions: list[Completion]) -> list[float | None]:
        try:
            values = await self._call(list(completions))
        except Exception as error:
            raise self._failed(error) from error
        try:
            values = list(values)
        except TypeError:
            raise RewardError(f"reward {self.name!r} must return a list, not {type(values).__name__}") from None
        if len(values) != len(completions):
            raise RewardError(f"reward {self.name!r} returned {len(values)} values for {len(completions)} completions")
        return [self._verdict(value) for value in values]

    async def _judge_each(self, completions: list[Completion]) -> list[float | None]:
        if self._async:
            outcomes = await self._judge_at_once(completions)
        else:
            outcomes = [await self._attempt(completion) for completion in completions]
        failures = [error for _, error in outcomes if error is not None]
        if len(failures) == len(completions):
            raise self._failed(failures[0]) from failures[0]
        for error in failures:
            _log.warning("reward %r gave no verdict on a completion: %s: %s", self.name, type(error).__name__, error)
        return [None if error is not None else self._verdict(value) for value, error in outcomes]

    async def _judge_at_once(self, completions: list[Completion]) -> list[tuple[Any, Exception | None]]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._attempt(completion)) for completion in completions]
        return [task.result() for task in tasks]

    async def _attempt(self, completion: Completion) -> tuple[Any, Exception | None]:
        try:
            return await self._call(completion), None
        except Exception as error:
            return None, error

    async def _call(self, argument: Any) -> Any:
        value = self._function(argument) if self._async else await asyncio.to_thread(self._function, argument)
        return await value if inspect.isawaitable(value) else value

    def _failed(self, error: Exception) -> RewardError:
        return RewardError(f"reward {self.name!r} failed: {type(error).__name__}: {error}")

    def _verdict(self, value: Any) -> float | None:
        if value is None:
            return None
        try:
            number = float(value) if isinstance(value, SupportsFloat) else math.nan
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise RewardError(f"reward {self.name!r} must return finite numbers or None, not {value!r:.80}")
        return number
