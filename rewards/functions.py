"""Rewards from plain functions, sync or async, of one completion or of a group."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

from backends import Completion, Prompt
from rewards.base import Reward, checked_verdicts, score_drawn
from rewards.errors import RewardError, RewardSpecError, failed
from rewards.pointwise import PointwiseReward
from rewards.threads import in_thread
from rewards.timeouts import within
from rewards.workers import Workers

Verdict: TypeAlias = float | None
PointwiseFunction: TypeAlias = Callable[..., Verdict | Awaitable[Verdict]]
GroupFunction: TypeAlias = Callable[..., Sequence[Verdict] | Awaitable[Sequence[Verdict]]]

DEFAULT_TIMEOUT = 60.0


class FunctionReward(PointwiseReward):
    """Judges by a plain function of one completion, see `Function`.

    Sync functions judge the completions of one call one after another, those of concurrent calls at the same time;
    async functions judge all completions of a call at once.
    """

    def __init__(
        self,
        function: PointwiseFunction,
        *,
        name: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        process: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap a function.

        Args:
            function: Takes one completion, and the prompt too if it has a parameter ``prompt``; returns a
                verdict, see `Reward.score`.
            name: The reward's name; by default the function's.
            timeout: Seconds that a call may take; None for no limit.
            process: Whether to run it in a process of its own, which is killed when it takes too long.
            arguments: Keyword arguments of every call.

        Raises:
            RewardSpecError: The function cannot be called like this.
        """
        self._function = Function(
            function, takes="one completion", name=name, timeout=timeout, process=process, arguments=arguments or {}
        )
        self.name = self._function.name
        self.judgment_limit = None  # The function has its own.
        self.concurrency = None if self._function.asynchronous else 1

    async def judge(self, prompt: Prompt, completion: Completion) -> float | None:
        """Return what the function returns."""
        return cast("float | None", await self._function(prompt, completion))  # Checked by whoever asks.

    async def aclose(self) -> None:
        """End the function's process, if it has one."""
        self._function.close()


class GroupFunctionReward(Reward):
    """Judges by a plain function of the list of all completions but failed draws, see `Function`."""

    def __init__(
        self,
        function: GroupFunction,
        *,
        name: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        process: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap a function that returns one verdict for each completion; otherwise as `FunctionReward`.

        Raises:
            RewardSpecError: The function cannot be called like this.
        """
        self._function = Function(
            function,
            takes="the list of completions",
            name=name,
            timeout=timeout,
            process=process,
            arguments=arguments or {},
        )
        self.name = self._function.name

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        """Return the function's verdicts, None for failed draws.

        Raises:
            RewardError: The function raised, took too long, or returned something else than one verdict each.
        """
        return await score_drawn(completions, lambda drawn: self._judge(prompt, drawn))

    async def _judge(self, prompt: Prompt, drawn: list[Completion]) -> list[float | None]:
        try:
            values = await self._function(prompt, list(drawn))
        except RewardError:
            raise
        except Exception as error:
            raise failed(f"reward {self.label!r}", error) from error
        return checked_verdicts(values, len(drawn), self.label)

    async def aclose(self) -> None:
        """End the function's process, if it has one."""
        self._function.close()


class Function:
    """A user's function, called so that it never holds up the event loop.

    Async functions are awaited; sync ones run in a worker thread, or in a process of their own. A thread that takes too
    long cannot be stopped, only left behind; a process is killed.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        takes: str,
        name: str | None,
        timeout: float | None,
        process: bool,
        arguments: Mapping[str, Any],
    ) -> None:
        """Look at the function's signature.

        Raises:
            RewardSpecError: It cannot be called with what it ``takes``, or cannot run in a process.
        """
        self.name = name or function_name(function)
        self.asynchronous = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            type(function).__call__
        )
        self._function = function
        self._arguments = arguments
        self._timeout = timeout
        parameters = _parameters(function)
        self._wants_prompt = "prompt" in parameters
        keywords = [p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY or p.name == "prompt"]
        try:
            inspect.signature(function).bind(object(), **dict.fromkeys(keywords))
        except TypeError as error:
            raise RewardSpecError(f"the function of reward {self.name!r} must take {takes}: {error}") from error
        except ValueError:  # Some builtins have no signature to look at; calling them will tell.
            pass
        self._workers: Workers | None = None
        if process:
            if self.asynchronous:
                raise RewardSpecError(f"reward {self.name!r}: process=True is for sync functions")
            self._workers = Workers(function, size=1, name=f"reward {self.name!r}", seconds=timeout)

    async def __call__(self, prompt: Prompt, judged: Any) -> Any:
        """Return what the function returns for one completion or a list of them.

        Raises:
            RewardTimeoutError: It took too long.
        """
        keywords = {**self._arguments, **({"prompt": prompt} if self._wants_prompt else {})}
        if self._workers is not None:
            return await self._workers.call(judged, **keywords)
        return await within(self._timeout, self._called(judged, keywords), what=f"reward {self.name!r}")

    async def _called(self, judged: Any, keywords: Mapping[str, Any]) -> Any:
        if self.asynchronous:
            value = self._function(judged, **keywords)
        else:
            value = await in_thread(lambda: self._function(judged, **keywords))
        return await value if inspect.isawaitable(value) else value

    def close(self) -> None:
        """End the process, if there is one."""
        if self._workers is not None:
            self._workers.close()


def function_name(function: Callable[..., Any]) -> str:
    """Return what to call a reward that is made from a function without a name of its own."""
    return str(getattr(function, "__name__", type(function).__name__))


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
