"""What can go wrong while an answer is judged."""

from __future__ import annotations


class RewardError(Exception):
    """A reward could not judge, or returned something that is no verdict; the base of all errors of this package."""


class RewardSpecError(RewardError, ValueError):
    """A reward specification names no known reward, or gives it arguments that it does not take."""


class RewardTimeoutError(RewardError, TimeoutError):
    """A judgement took longer than its limit and was given up."""


def failed(name: str, error: BaseException) -> RewardError:
    """Return the error for ``reward 'mine'`` or the like, whose code raised another one."""
    return RewardError(f"{name} failed: {described(error)}")


def described(error: BaseException) -> str:
    """Return an error's class and what it says, if it says anything."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")
