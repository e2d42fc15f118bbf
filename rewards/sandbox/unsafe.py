"""No sandbox at all, only limits: for people who say so."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from rewards.sandbox.base import Launch, Limits, Sandbox
from rewards.sandbox.command import command, interpreter

_DEATH_SECONDS = 1.0
"""The dead stay in their group until somebody buries them, which may be never in a container."""


class Unsafe(Sandbox):
    """Runs programs as a bare child process, for code that you would run by hand, or inside a container of your own.

    What holds: the limits on time, output, open files, and on the memory, CPU time and file size of each process; an
    empty environment; a temporary folder as working directory, removed afterwards; and what stays in the program's
    process group is killed. Verdicts are given by another process than the program's, as in every sandbox.

    What does not: the program can read, change and delete all files that you can, use the network, see and kill your
    processes, start as many as it likes, fill the disk, and leave processes behind that began a session of their own.
    """

    name = "unsafe"
    isolated = False

    def check(self) -> str:
        """Return what is missing."""
        return "" if os.name == "posix" else "it needs a POSIX system"

    @contextlib.contextmanager
    def launch(self, source: str, arguments: Sequence[str], limits: Limits, *, first: bool = False) -> Iterator[Launch]:
        """Return the interpreter's command, for as long as its temporary folder exists."""
        inside = command(
            interpreter(),
            source,
            arguments,
            limits,
            with_parent=sys.platform == "linux",
            filtered=False,
            counted=False,
        )
        with tempfile.TemporaryDirectory(prefix=f"sandbox-{os.getpid()}-", ignore_cleanup_errors=True) as folder:
            yield Launch(argv=inside, kill=_kill, folder=folder, environment={"TMPDIR": folder})


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill the process group, and see it gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        deadline = time.monotonic() + _DEATH_SECONDS
        while time.monotonic() < deadline:
            os.killpg(child.pid, 0)  # Raises when there is nobody left.
            time.sleep(0.001)
