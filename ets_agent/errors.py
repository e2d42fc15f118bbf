"""What can go wrong in the sampler itself; backends and rewards have vocabularies of their own."""

from __future__ import annotations


class ConfigError(ValueError):
    """The settings are not usable; the message says which one, what it was and what is allowed."""


class RunningLoopError(RuntimeError):
    """A blocking call was made inside a running event loop, where it would stop everything else."""
