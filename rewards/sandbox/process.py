"""Run one child process within a time limit and an output limit, in a bounded pool of threads.

Threads rather than asyncio's subprocesses: a run then belongs to no event loop, so it works from any, and a loop that
closes under it leaves no transport behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import selectors
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from rewards.sandbox.errors import SandboxError

if TYPE_CHECKING:
    from rewards.sandbox.base import Execution, Launch, Limits

START_SECONDS = 30.0
"""How long a sandbox may take until the program begins."""
DEATH_SECONDS = 10.0
"""How long a killed sandbox may take to be gone."""

STARTED = b"started\n"
"""What the launcher writes to stdout first: limits hold, and what follows is the program's doing."""

_STDERR_TAIL = 4096
_TICK = 0.05
_CHUNK = 1 << 16

_T = TypeVar("_T")


async def submit(function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
    """Call ``function(..., cancelled=…)`` in a thread of the pool and wait for it.

    A cancelled call has ended before the cancellation goes on.
    """
    cancelled = threading.Event()
    future = _pool().submit(function, *args, **kwargs, cancelled=cancelled.is_set)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        cancelled.set()
        await _ended(future)
        raise


async def _ended(future: Future[_T]) -> None:
    if not future.cancel():
        end = asyncio.wrap_future(future)
        end.add_done_callback(lambda _: end.cancelled() or end.exception())  # Nobody is left to be told.
        await asyncio.wait([end], timeout=DEATH_SECONDS + START_SECONDS)


_pool_lock = threading.Lock()
_pool_instance: ThreadPoolExecutor | None = None


def _pool() -> ThreadPoolExecutor:
    global _pool_instance
    with _pool_lock:
        if _pool_instance is None:
            _pool_instance = ThreadPoolExecutor(places(), thread_name_prefix="sandbox")
        return _pool_instance


def _forget_pool() -> None:
    """A forked process has none of its parent's threads."""
    global _pool_instance, _pool_lock
    _pool_instance, _pool_lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def places() -> int:
    """Return how many programs run at the same time: one for each processor that this process may use, and one more."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return processors + 1


def run(launch: Launch, *, stdin: bytes, limits: Limits, cancelled: Callable[[], bool], name: str) -> Execution:
    """Run a child process; when this returns or raises, it is dead.

    Raises:
        SandboxError: It could not be started, or the launcher inside did not get to start the program.
    """
    try:
        child = subprocess.Popen(
            launch.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=dict(launch.environment),
            cwd=launch.folder,
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxError(f"the {name} sandbox could not be started: {error}") from error
    streams = _Streams(child, stdin, limits.output_bytes)
    try:
        return _follow(child, streams, limits, cancelled, name, functools.partial(launch.kill, child))
    finally:
        if child.returncode is None:
            launch.kill(child)
        _reap(child)
        streams.close()


def _follow(
    child: subprocess.Popen[bytes],
    streams: _Streams,
    limits: Limits,
    cancelled: Callable[[], bool],
    name: str,
    kill: Callable[[], None],
) -> Execution:
    from rewards.sandbox.base import Execution

    began: float | None = None
    ends = time.monotonic() + START_SECONDS
    timed_out = False
    while child.poll() is None and not streams.overflowed and not timed_out and not cancelled():
        timed_out = (left := ends - time.monotonic()) <= 0
        if streams.open:
            streams.pump(max(0.0, min(left, _TICK)))
        else:  # It has said all, and is about to end.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_TICK)
        if began is None and streams.started:
            began = time.monotonic()
            ends = began + limits.wall_seconds
    seconds = time.monotonic() - (began or time.monotonic())
    kill()
    returncode = _reap(child)
    streams.drain()
    if not streams.started:
        what = "was cancelled" if cancelled() else "did not start in time" if timed_out else "could not start"
        raise SandboxError(f"the {name} sandbox {what}: {streams.errors or f'exit status {returncode}'}")
    return Execution(
        returncode=returncode,
        stdout=streams.output,
        stderr=streams.errors,
        timed_out=timed_out,
        overflowed=streams.overflowed,
        seconds=seconds,
    )


def _reap(child: subprocess.Popen[bytes]) -> int:
    try:
        return child.wait(DEATH_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


class _Streams:
    """The three pipes of a child; nothing here blocks."""

    def __init__(self, child: subprocess.Popen[bytes], stdin: bytes, most: int) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        self._stdin, self._stdout, self._stderr = child.stdin, child.stdout, child.stderr
        self._unsent = memoryview(stdin)
        self._most = most + len(STARTED)
        self._output = bytearray()
        self._errors = bytearray()
        self._selector = selectors.DefaultSelector()
        for stream in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(stream.fileno(), False)
        self._selector.register(self._stdout, selectors.EVENT_READ)
        self._selector.register(self._stderr, selectors.EVENT_READ)
        if stdin:
            self._selector.register(self._stdin, selectors.EVENT_WRITE)
        else:
            self._stdin.close()

    @property
    def open(self) -> bool:
        """Whether the child may still say something."""
        return any(key.fileobj is not self._stdin for key in self._selector.get_map().values())

    @property
    def started(self) -> bool:
        return self._output.startswith(STARTED)

    @property
    def overflowed(self) -> bool:
        return len(self._output) > self._most

    @property
    def output(self) -> bytes:
        return bytes(self._output[len(STARTED) : self._most])

    @property
    def errors(self) -> str:
        return self._errors.decode(errors="replace").strip()

    def pump(self, timeout: float) -> bool:
        """Move what can be moved within some seconds; return whether there was anything."""
        events = self._selector.select(timeout)
        for key, _ in events:
            if key.fileobj is self._stdin:
                self._send()
            else:
                self._receive(key.fileobj is self._stdout)
        return bool(events)

    def drain(self) -> None:
        """Read what a dead child has left in its pipes, no more than they hold."""
        for _ in range(64):
            if not self.open or self.overflowed or not self.pump(0):
                return

    def close(self) -> None:
        self._selector.close()
        for stream in (self._stdin, self._stdout, self._stderr):
            with contextlib.suppress(OSError):
                stream.close()

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[os.write(self._stdin.fileno(), self._unsent[:_CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:  # It does not want to know.
            self._unsent = memoryview(b"")
        if not self._unsent:
            self._selector.unregister(self._stdin)
            self._stdin.close()

    def _receive(self, is_output: bool) -> None:
        stream = self._stdout if is_output else self._stderr
        try:
            data = os.read(stream.fileno(), _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(stream)
        elif is_output:
            self._output += data
        else:
            self._errors = (self._errors + data)[-_STDERR_TAIL:]
