"""Asks a sandbox from inside what it keeps away; prints what it failed to keep, one line each."""

from __future__ import annotations

import os
import resource
import socket
import sys
from itertools import repeat

_OF_THE_SYSTEM = ("PWD", "LC_CTYPE", "HOME", "HOSTNAME", "PATH", "LANG", "PYTHON", "GPG_KEY")
"""Variables of the sandbox's own; an image for containers has some."""
_ELSEWHERE = ("/", "/usr", "/etc", "/dev", "/var", "/home", "/root")


def main(port: str, secret: str, processes: str) -> None:
    """Try what must not be possible: reach a port of the host's loopback, see a file of its user, and more."""
    for name, reached in (
        ("the network can be reached", _connects(int(port))),
        ("files of the user can be read", os.path.exists(secret)),
        ("the environment leaks", not all(map(str.startswith, os.environ, repeat(_OF_THE_SYSTEM)))),
        ("the program is root", os.getuid() == 0),
        ("the program has capabilities", _capabilities() != 0),
        ("other processes can be seen", os.getppid() != 1),
        ("the system can be written to", any(map(_writable, _ELSEWHERE))),
        ("/tmp cannot be written to", not _writable("/tmp")),
        ("files have no limit", resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY),
        ("memory has no limit", _allocates()),
        ("processes have no limit", _forks(int(processes))),
    ):
        if reached:
            print(name)


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _capabilities() -> int:
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("CapEff")).split()[1], 16)


def _writable(folder: str) -> bool:
    try:
        with open(f"{folder}/probe", "w"):
            pass
        os.unlink(f"{folder}/probe")
    except OSError:
        return False
    return True


def _allocates() -> bool:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    try:
        return limit == resource.RLIM_INFINITY or bool(bytearray(limit))
    except MemoryError:
        return False


def _forks(most: int) -> bool:
    """Return whether there can be more processes than there should; they end with this one."""
    for _ in range(most):
        try:
            if os.fork() == 0:
                os.read(sleepers[0], 1)
                os._exit(0)
        except OSError:
            return False
    return True


sleepers = os.pipe()

if __name__ == "__main__":
    main(*sys.argv[1:])
