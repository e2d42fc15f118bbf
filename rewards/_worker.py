"""The other side of `rewards.workers`: a process that calls one function again and again.

Run as a script, with nothing but the standard library, until it has taken over the ``sys.path`` of the process that it
works for.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import select
import signal
import sys
from collections.abc import Callable, Iterator
from io import FileIO
from typing import Any

IDLE = 75
"""Exit status of a process that nobody has asked for anything in a while."""
OVERTIME = int(signal.SIGPROF)
"""The signal by which a process is ended that takes too much processor time; the wall time is its employer's affair."""
_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


def main(settings: str) -> int:
    """Serve calls on stdin, answer on stdout, until stdin ends; return the exit status."""
    options = json.loads(settings)
    _die_with_parent()
    requests, replies = FileIO(os.dup(0), "rb"), FileIO(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # What the function prints is no reply.
    sys.path[:] = options["path"]
    if options["memory"] is not None:
        _limit_memory(options["memory"])
    function = _imported(options["target"])
    _write(replies, b"!")  # From now on the time counts.
    while select.select([requests], [], [], options["idle_seconds"])[0]:
        header = _read(requests, 8)
        if header is None or (request := _read(requests, int.from_bytes(header, "little"))) is None:
            return 0
        with _time_limit(options["cpu_seconds"]):
            reply = _reply(function, request)
        _write(replies, len(reply).to_bytes(8, "little"))
        _write(replies, reply)
    return IDLE


@contextlib.contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Let the kernel end this process after so much processor time."""
    if seconds is not None:
        signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        if seconds is not None:
            signal.setitimer(signal.ITIMER_PROF, 0)


def _imported(target: str) -> Callable[..., Any] | str:
    """Return the function, or why there is none."""
    module, _, name = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except BaseException as error:  # A module may even ask for the end of the process.
        return f"cannot import {name} from {module}: {type(error).__name__}: {error}"
    return found if callable(found) else f"{target} is no function"


def _reply(function: Callable[..., Any] | str, request: bytes) -> bytes:
    if isinstance(function, str):
        return pickle.dumps((False, function))
    try:
        args, kwargs = pickle.loads(request)
        return pickle.dumps((True, function(*args, **kwargs)))
    except BaseException as error:  # SystemExit is a failure like any other, and no reason to start another process.
        return pickle.dumps((False, f"{type(error).__name__}: {error}".removesuffix(": ")))


def _read(stream: FileIO, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        chunk = stream.read(size - len(data))
        if not chunk:
            return None
        data += chunk
    return bytes(data)


def _write(stream: FileIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


def _limit_memory(size: int) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # There is no such limit on Windows.
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _die_with_parent() -> None:
    """Ask the kernel to end this process with its parent, even in the middle of a call that never returns."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
