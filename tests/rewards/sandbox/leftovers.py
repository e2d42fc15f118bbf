"""What runs in a sandbox may not leave behind: processes, files, mounts, file descriptors."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import time
from pathlib import Path

from rewards.sandbox import Limits

_FILES = (f"sandbox-{os.getpid()}-", "hostile-file", "hostile-folder")
_count = itertools.count(secrets.randbelow(1 << 20))


class Leftovers:
    """Compares what there is with what there was.

    Other processes of the machine come and go, so those of a run are told by a mark: a limit that nobody else sets.
    """

    def __init__(self) -> None:
        self._mark = (17 << 20) + next(_count)
        self._mounts = _mounts()
        self._files = _files()
        self._descriptors = 1 << 20

    def limits(self, **others: float) -> Limits:
        """Return limits by which to recognise the processes of a run; file descriptors are counted from here."""
        self._descriptors = _descriptors()
        return Limits(file_bytes=self._mark, **others)  # type: ignore[arg-type]

    def processes(self) -> list[int]:
        """Return the processes that are there now."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if str(self._mark).encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                    found.append(int(name))
        return found

    def check(self, *, within: float = 0.0) -> None:
        """Fail if there is anything that was not there before, after some seconds at most."""
        deadline = time.monotonic() + within
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not self.processes(), "processes are left"
        assert _files() <= self._files, "files are left"
        assert _mounts() == self._mounts, "mounts are left"
        assert _descriptors() <= self._descriptors, "file descriptors are left"


def _mounts() -> str:
    return Path("/proc/self/mounts").read_text() if os.path.exists("/proc/self/mounts") else ""


def _files() -> set[str]:
    folders = ("/tmp", "/dev/shm", "/var/tmp", str(Path.home()), os.getcwd())
    return {f"{folder}/{name}" for folder in folders for name in _names(folder) if name.startswith(_FILES)}


def _names(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
