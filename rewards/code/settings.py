"""What the rewards for programs have in common: which sandbox, and within which limits."""

from __future__ import annotations

from rewards.errors import RewardSpecError
from rewards.sandbox import Limits, Sandbox, SandboxName, select
from rewards.sandbox.base import MIB

_LEAST_MEMORY = 64
"""MiB; the interpreter itself needs half of that."""


def chosen(sandbox: SandboxName | Sandbox) -> Sandbox:
    """Return a sandbox, by name or as it is.

    Raises:
        RewardSpecError: There is none of this name.
        SandboxUnavailableError: It does not work here; the message says what to do.
    """
    if isinstance(sandbox, Sandbox):
        return sandbox
    try:
        return select(sandbox)
    except ValueError as error:
        raise RewardSpecError(str(error)) from None


def limits(timeout: float, memory_mb: int) -> Limits:
    """Return the limits of one program.

    Raises:
        RewardSpecError: They leave it nothing.
    """
    if not 0 < timeout <= 3600:
        raise RewardSpecError(f"timeout must be above 0, and at most 3600 seconds, not {timeout}")
    if memory_mb < _LEAST_MEMORY:
        raise RewardSpecError(f"memory_mb must be at least {_LEAST_MEMORY}, not {memory_mb}")
    return Limits(memory_bytes=memory_mb * MIB)
