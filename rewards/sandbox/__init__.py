"""Sandboxes for untrusted Python programs, and a harness that tests such programs in them.

sandbox = select("auto")
execution = await sandbox.run("print(6 * 7)", limits=Limits(wall_seconds=2))
"""

from rewards.sandbox.base import Execution, Limits, Sandbox
from rewards.sandbox.errors import SandboxError, SandboxUnavailableError
from rewards.sandbox.selection import SandboxName, select

__all__ = ["Execution", "Limits", "Sandbox", "SandboxError", "SandboxName", "SandboxUnavailableError", "select"]
