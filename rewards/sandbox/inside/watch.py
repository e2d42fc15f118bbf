"""A thread of the tester that ends what takes too much memory or too long, or what nobody waits for any more."""

from __future__ import annotations

import _thread
import os
import select
import signal
import time
from contextlib import suppress

_TICK = 0.02
_INODE = 1024
"""Bytes of kernel memory for each file; about."""
_FOLDERS = ("/tmp", "/dev/shm")


def start(seconds: float, memory: int, output: int) -> None:
    """Start the thread.

    Args:
        seconds: When to end this process, whatever it does.
        memory: Bytes that all processes but this may have together, files in memory included. Only where this is the
            first process of a process space can it tell which those are.
        output: Where the verdict goes; when its reader is gone, this process ends.
    """
    _thread.start_new_thread(_watch, (time.monotonic() + seconds, memory, output))


def _watch(deadline: float, memory: int, output: int) -> None:
    poll = select.poll()
    poll.register(output, 0)
    alone = os.getpid() == 1
    while time.monotonic() < deadline and not poll.poll(0):
        if alone and _used() > memory:
            with suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)  # All but this one.
        time.sleep(_TICK)
    os._exit(1)


def _used() -> int:
    return sum(_of_process(name) for name in os.listdir("/proc") if name.isdigit() and name != "1") + sum(
        map(_of_folder, _FOLDERS)
    )


def _of_process(name: str) -> int:
    """Return the bytes that a process does not share with the files of its programs."""
    with suppress(OSError, ValueError), open(f"/proc/{name}/status", "rb") as status:
        lines = [line.split() for line in status if line.startswith((b"RssAnon", b"RssShmem"))]
        return sum(int(line[1]) for line in lines) * 1024
    return 0


def _of_folder(path: str) -> int:
    with suppress(OSError):
        state = os.statvfs(path)
        return (state.f_blocks - state.f_bfree) * state.f_frsize + (state.f_files - state.f_ffree) * _INODE
    return 0
