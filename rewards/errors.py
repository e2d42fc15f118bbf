"""What can go wrong while an answer is judged."""

from __future__ import annotations


class RewardError(Exception):
    """A reward could not judge, or returned something that is no verdict; the base of all errors of this package."""


class RewardSpecError(RewardError, ValueError):
    """A reward specification names no known reward, or gives it arguments that it does not take."""
