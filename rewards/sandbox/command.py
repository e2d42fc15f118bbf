"""The command that becomes a program inside a sandbox: the interpreter, the launcher and its settings."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import sysconfig
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING

from rewards.sandbox.errors import SandboxError
from rewards.sandbox.process import STARTED

if TYPE_CHECKING:
    from rewards.sandbox.base import Limits

LONGEST_ARGUMENT = (128 << 10) - 1
"""Bytes; the kernel takes no longer ones."""

_STACK = 8 << 20


@functools.cache
def inside(module: str) -> str:
    """Return the text of a module of `rewards.sandbox.inside`."""
    return resources.files("rewards.sandbox.inside").joinpath(f"{module}.py").read_text(encoding="utf-8")


def interpreter() -> str:
    """Return the path of the interpreter that this environment is based on."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def packages() -> list[str]:
    """Return the folders in which this environment's packages are installed."""
    return list(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))


def command(
    python: str,
    source: str,
    arguments: Sequence[str],
    limits: Limits,
    *,
    uid: int | None = None,
    guarded: bool = False,
    with_parent: bool = False,
    filtered: bool = True,
    counted: bool = True,
) -> list[str]:
    """Return the command that runs a program under limits.

    Args:
        python: The interpreter's path, as seen inside.
        source: The program's text.
        arguments: Its arguments.
        limits: What it may use.
        uid: The user and group to become; None to stay.
        guarded: Whether a process before it watches over it, and ends it when nobody reads its output any more.
        with_parent: Whether the kernel ends it with its parent; for one that stays the user that the parent is.
        filtered: Whether to deny system calls that no program needs; Linux only.
        counted: Whether the kernel should count this user's processes, that is, whether the user has no others.

    Raises:
        SandboxError: The program is too long.
    """
    settings = {
        "started": STARTED.decode(),
        "uid": uid,
        "guard": guarded,
        "with_parent": with_parent,
        "filter": filtered,
        "limits": {
            "CORE": 0,
            "STACK": _STACK,
            "CPU": math.ceil(limits.cpu_seconds),
            "AS": limits.memory_bytes,
            "FSIZE": limits.file_bytes,
            "NOFILE": limits.open_files,
            "NPROC": limits.processes + guarded if counted else None,
        },
    }
    texts = [inside("launcher"), json.dumps(settings), source, *arguments]
    if max(len(os.fsencode(text)) for text in texts) > LONGEST_ARGUMENT:
        raise SandboxError(f"a program for a sandbox may have {LONGEST_ARGUMENT >> 10} KiB; pass more through stdin")
    return [python, "-I", "-S", "-c", *texts]
