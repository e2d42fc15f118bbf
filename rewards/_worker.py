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
IDLE_SECONDS = 60.0
OVERTIME = {int(signal.SIGALRM): "seconds", int(signal.SIGPROF): "cpu_seconds"}
"""The signals by which a process is ended when a call takes too long, and which limit each of them stands for."""
_TIMERS = {"seconds": signal.ITIMER_REAL, "cpu_seconds": signal.ITIMER_PROF}
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
    while select.select([requests], [], [], IDLE_SECONDS)[0]:
        header = _read(requests, 8)
        if header is None or (request := _read(requests, int.from_bytes(header, "little"))) is None:
            return 0
        with _time_limits(options):
            reply = _reply(function, request)
        _write(replies, len(reply).to_bytes(8, "little"))
        _write(replies, reply)
    return IDLE


@contextlib.contextmanager
def _time_limits(limits: dict[str, Any]) -> Iterator[None]:
    """Let the kernel end this process after so much time: nothing that the function does can hold that up."""
    timers = {timer: limits[limit] for limit, timer in _TIMERS.items() if limits[limit] is not None}
    for timer, seconds in timers.items():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)


def _imported(target: str) -> Callable[..., Any] | str:
    """Return the function, or why there is none."""
    module, _, name = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        return f"cannot import {name} from {module}: {type(error).__name__}: {error}"
    return found if callable(found) else f"{target} is no function"


def _reply(function: Callable[..., Any] | str, request: bytes) -> bytes:
    if isinstance(function, str):
        return pickle.dumps((False, function))
    try:
        args, kwargs = pickle.loads(request)
        return pickle.dumps((True, function(*args, **kwargs)))
    except Exception as error:
        return pickle.dumps((False, f"{type(error).__name__}: {error}"))


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
