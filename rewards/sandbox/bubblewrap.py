"""The sandbox of bubblewrap: namespaces of its own, made without a daemon."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rewards.sandbox.base import Launch, Limits, Sandbox
from rewards.sandbox.command import command, interpreter, packages
from rewards.sandbox.process import DEATH_SECONDS

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
_FIRST_UID, _UIDS = 0x70000000, 0x0FFFFFFF
_SHARED_MEMORY = 4 << 20
_NOBODY = "65534"


class Bubblewrap(Sandbox):
    """Runs programs under ``bwrap``: no network, own process space, nothing of the file system but what Python needs.

    Inside there are, read-only, /usr and the libraries, the interpreter, and this environment's packages; empty and
    limited, /tmp and /dev/shm. The program is an unprivileged user without capabilities, and cannot gain any.

    An ordinary user gets a user namespace. Root does not, as root inside would be root for files and limits outside:
    the launcher becomes a user that exists nowhere else instead, another one for each run, so that the kernel counts
    the processes of each run by themselves.
    """

    name = "bubblewrap"

    def __init__(self, executable: str | None = None) -> None:
        """Find ``bwrap``, on the PATH by default."""
        self._executable = executable or shutil.which("bwrap")

    def check(self) -> str:
        """Return what is missing."""
        if sys.platform != "linux":
            return "it exists on Linux only"
        return "" if self._executable else "bwrap is not installed (apt-get install bubblewrap, or your system's like)"

    @contextlib.contextmanager
    def launch(self, source: str, arguments: Sequence[str], limits: Limits, *, first: bool = False) -> Iterator[Launch]:
        """Return the ``bwrap`` command; it holds nothing that would have to be freed."""
        root = os.geteuid() == 0
        uid = _FIRST_UID + secrets.randbelow(_UIDS) if root else None
        inside = command(interpreter(), source, arguments, limits, uid=uid, guarded=not first)
        argv = [str(self._executable), *_namespaces(root), *_files(limits), "--", *inside]
        yield Launch(argv=argv, kill=_kill)


def _namespaces(root: bool) -> list[str]:
    options = ["--as-pid-1", "--die-with-parent", "--new-session", "--hostname", "sandbox"]
    if root:
        rights = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        own = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        return [*options, *own, *rights]
    return [*options, "--unshare-all", "--unshare-user", "--disable-userns", "--uid", _NOBODY, "--gid", _NOBODY]


def _files(limits: Limits) -> list[str]:
    options: list[str] = []
    for path in _SYSTEM:
        if os.path.islink(path):
            options += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            options += ["--ro-bind", path, path]
    options += ["--proc", "/proc", "--dev", "/dev"]
    options += ["--perms", "1777", "--size", str(_SHARED_MEMORY), "--tmpfs", "/dev/shm"]
    options += ["--perms", "1777", "--size", str(limits.file_bytes), "--tmpfs", "/tmp"]
    for path in _environment():
        for parent in reversed(Path(path).parents[:-1]):  # Bubblewrap would let nobody but root pass through them.
            options += ["--perms", "0755", "--dir", str(parent)]
        options += ["--ro-bind-try", path, path]
    return [*options, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]


def _environment() -> list[str]:
    """Return the folders of interpreter and packages, as far as they are not part of the system."""
    found: list[str] = []
    for path in (sys.base_prefix, sys.base_exec_prefix, os.path.dirname(interpreter()), *packages()):
        if not any(Path(path).is_relative_to(known) for known in (*_SYSTEM, *found)):
            found.append(path)
    return found


def _kill(outer: subprocess.Popen[bytes]) -> None:
    """Kill the first process inside, with which the kernel kills all others, and see it gone.

    Killing ``bwrap`` itself would do so too, but without a way to know when. While it is stopped, it can neither start
    another process nor let the number of its child be used again.
    """
    if outer.poll() is not None:
        return
    outer.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + DEATH_SECONDS
    while (state := _stat(outer.pid)[0]) not in "TtZX" and time.monotonic() < deadline:
        time.sleep(0.001)
    children = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _stat(pid)[1] == outer.pid]
    for pid in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    if not children and state in "Tt":
        outer.kill()  # It has started nothing yet.
    outer.send_signal(signal.SIGCONT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        outer.wait(DEATH_SECONDS)


def _stat(pid: int) -> tuple[str, int]:
    """Return state and parent of a process; "X" and -1 if there is none."""
    try:
        # The name, in parentheses, may hold anything, parentheses too.
        state, parent = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
    except OSError:
        return "X", -1
    return state, int(parent)
