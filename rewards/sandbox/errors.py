"""What can go wrong with a sandbox itself; what a program does wrong inside is never an error here."""

from __future__ import annotations

from rewards.errors import RewardError


class SandboxError(RewardError):
    """A sandbox failed, so nothing can be said about the program that it should have run."""


class SandboxUnavailableError(SandboxError):
    """There is no working sandbox on this machine; the message says what was tried and what to do."""
