"""What can go wrong in the sampler itself; backends and rewards have vocabularies of their own."""

from __future__ import annotations


class ConfigError(ValueError):
    """The settings are not usable; the message says which one, what it was and what is allowed.

    Args:
        message: What is wrong and what is allowed.
        setting: The field of `ETSConfig` that it is about, the first one if there are several; None for none.
    """

    def __init__(self, message: str, *, setting: str | None = None) -> None:
        """Keep both."""
        super().__init__(message)
        self.setting = setting


class RunningLoopError(RuntimeError):
    """A blocking call was made inside a running event loop, where it would stop everything else."""
