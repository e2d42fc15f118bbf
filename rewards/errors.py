"""What can go wrong while an answer is judged."""

from __future__ import annotations


class RewardError(Exception):
    """A reward could not judge, or returned something that is no verdict; the base of all errors of this package."""


class RewardSpecError(RewardError, ValueError):
    """A reward specification names no known reward, or gives it arguments that it does not take.

    Args:
        message: What is wrong and what is allowed.
        problem: What is wrong alone, for those who offer a reward by another name, or not with all of its arguments.
    """

    def __init__(self, message: str, *, problem: str | None = None) -> None:
        """Keep both."""
        super().__init__(message)
        self.problem = message if problem is None else problem


class RewardTimeoutError(RewardError, TimeoutError):
    """A judgement took longer than its limit and was given up."""


def failed(name: str, error: BaseException) -> RewardError:
    """Return the error for ``reward 'mine'`` or the like, whose code raised another one."""
    return RewardError(f"{name} failed: {described(error)}")


def described(error: BaseException) -> str:
    """Return an error's class and what it says, if it says anything."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")
