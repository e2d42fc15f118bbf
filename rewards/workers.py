"""Functions that may hang or eat memory, run in processes that can be killed.

Not `multiprocessing`, whose spawned processes run the main module again: a script that awaits a reward at its top level
would start itself once more in each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import IO, Any

from rewards import _worker
from rewards.errors import RewardError, RewardSpecError, RewardTimeoutError, failed
from rewards.threads import Threads

_GOING = 1.0
"""Seconds that a process whose output has ended may take to be gone."""
DEFAULT_SIZE = min(2, os.cpu_count() or 1)
IDLE_SECONDS = 60.0
"""Seconds after which a process ends that nobody has asked for anything."""


class Workers:
    """Up to ``size`` processes that call one function; they start when needed and end when idle for a minute.

    A cancelled call's process is killed at once, and so are all of them when this process dies, however it does.
    """

    def __init__(
        self,
        function: Callable[..., Any] | str,
        *,
        name: str,
        size: int = DEFAULT_SIZE,
        seconds: float | None = None,
        cpu_seconds: float | None = None,
        memory: int | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            function: A function that can be imported by name, or ``"module:function"``. What it takes and returns
                travels by pickle.
            name: What they work for, for messages.
            size: Most processes.
            seconds: Most wall time of a call, without the wait for a process; None for no limit.
            cpu_seconds: Most processor time of a call, which does not depend on what else the machine is doing.
            memory: Most address space of each process, in bytes; None for no limit.

        Raises:
            RewardSpecError: The function cannot be imported by name.
        """
        self._target = function if isinstance(function, str) else _import_name(function, name)
        self.name = name
        self._limits: dict[str, float | None] = {"seconds": seconds, "cpu_seconds": cpu_seconds, "memory": memory}
        self._lock = threading.Lock()
        self._threads = Threads(size, name="ets-reward-worker")
        self._processes: dict[subprocess.Popen[bytes], _Job | None] = {}
        """Those that run, with what they are working on; None for idle ones."""
        self._ready: set[subprocess.Popen[bytes]] = set()
        """Those that have imported the function."""
        weakref.finalize(self, _kill_all, self._processes)
        weakref.finalize(self, self._threads.close)
        _all.add(self)

    async def call(self, *args: Any, **kwargs: Any) -> Any:
        """Return ``function(*args, **kwargs)``, computed in one of the processes.

        Raises:
            RewardTimeoutError: It took too long.
            RewardError: The function raised, or its process died.
        """
        job = _Job(pickle.dumps((args, kwargs)))
        with self._lock:
            future = self._threads.submit(lambda: self._work(job))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._cancel(job)
            raise

    def close(self) -> None:
        """Kill the processes; harmless when called twice. Another call starts new ones."""
        with self._lock:
            self._threads.close()
            processes = dict(self._processes)
            self._processes.clear()
            for job in processes.values():
                if job is not None:
                    job.cancelled = True
        _kill_all(processes)

    def _forget(self) -> None:
        """Start anew in a forked process: the threads are not there, and the processes are its parent's."""
        self._lock = threading.Lock()
        self._threads = self._threads.anew()
        self._processes.clear()
        self._ready.clear()

    def _work(self, job: _Job) -> Any:
        """Do a job, in one of the threads."""
        while True:
            process = self._take(job)
            reused = process in self._ready
            try:
                reply = self._exchange(process, job)
            except Exception as error:  # Above all a result that cannot be read.
                self._drop(process)
                raise failed(self.name, error) from error
            if reply is not None and self._keep(process, job):
                ok, value = reply
                if not ok:
                    raise RewardError(f"{self.name} failed: {value}")
                return value
            status = self._drop(process)
            if status == _worker.IDLE and reused and not job.cancelled:
                continue  # It had gone home before the job came, as the others may have, too.
            if job.cancelled:
                raise RewardError(f"{self.name} was cancelled")
            if job.late:
                raise RewardTimeoutError(f"{self.name} took longer than {self._limits['seconds']:g} s")
            if -status == _worker.OVERTIME:
                limit = self._limits["cpu_seconds"]
                raise RewardTimeoutError(f"{self.name} took longer than {limit:g} s of processor time")
            if not reused or job.tried:
                raise RewardError(f"{self.name} failed: its process died ({_cause(status)})")
            job.tried = True  # It may have been gone before the job came: idle ones may be killed for memory.

    def _exchange(self, process: subprocess.Popen[bytes], job: _Job) -> tuple[bool, Any] | None:
        """Send a request and return the reply; None if the process ends instead, or is killed for being late."""
        assert process.stdin is not None
        assert process.stdout is not None
        if process not in self._ready:
            if not process.stdout.read(1):
                return None
            self._ready.add(process)

        def late() -> None:
            job.late = True
            _signal(process)

        timer = None if self._limits["seconds"] is None else threading.Timer(self._limits["seconds"], late)
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            process.stdin.write(len(job.request).to_bytes(8, "little") + job.request)
            process.stdin.flush()
            header = _read(process.stdout, 8)
            body = None if header is None else _read(process.stdout, int.from_bytes(header, "little"))
        except OSError:
            return None
        finally:
            if timer is not None:
                timer.cancel()
        return None if body is None or job.late else pickle.loads(body)

    def _keep(self, process: subprocess.Popen[bytes], job: _Job) -> bool:
        """Make a process idle again, unless it was killed meanwhile."""
        with self._lock:
            if job.cancelled or process not in self._processes:
                return False
            self._processes[process] = None
            return True

    def _take(self, job: _Job) -> subprocess.Popen[bytes]:
        """Return an idle process or a new one, which now belongs to the job."""
        with self._lock:
            if job.cancelled:
                raise RewardError(f"{self.name} was cancelled")
            idle = next((process for process, other in self._processes.items() if other is None), None)
            process = idle or self._start()
            self._processes[process] = job
            return process

    def _start(self) -> subprocess.Popen[bytes]:
        path = [entry or os.getcwd() for entry in sys.path]
        settings = {"path": path, "target": self._target, "idle_seconds": IDLE_SECONDS, **self._limits}
        return subprocess.Popen(
            [sys.executable, "-I", _worker.__file__, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for this process; it then kills its own.
        )

    def _drop(self, process: subprocess.Popen[bytes]) -> int:
        with self._lock:
            self._processes.pop(process, None)
            self._ready.discard(process)
        return _kill(process)

    def _cancel(self, job: _Job) -> None:
        with self._lock:
            job.cancelled = True
            for process, other in self._processes.items():
                if other is job:
                    _signal(process)


class _Job:
    """One call on its way; compared by identity."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.cancelled = False
        self.late = False
        self.tried = False
        """Whether a process that had waited for it was dead already."""


def _read(stream: IO[bytes], size: int) -> bytes | None:
    data = stream.read(size)
    return data if len(data) == size else None


def _kill(process: subprocess.Popen[bytes]) -> int:
    """End a process and free what belongs to it; return its exit status."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GOING)  # One that is about to end by itself has a status to tell.
    _signal(process)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # Unsent bytes for a process that is gone.
                stream.close()
    return process.wait()


def _signal(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and whatever it has started."""
    if process.returncode is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)


def _kill_all(processes: dict[subprocess.Popen[bytes], _Job | None]) -> None:
    for process in processes:
        _signal(process)
    while processes:
        _kill(processes.popitem()[0])


def _cause(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def _import_name(function: Callable[..., Any], name: str) -> str:
    module, qualified = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module in (None, "__main__") or "<" in qualified or not qualified:
        raise RewardSpecError(
            f"{name} cannot run in a process of its own: its function must be importable by name, "
            "so define it at the top level of a module that is not the main script"
        )
    return f"{module}:{qualified}"


_all: weakref.WeakSet[Workers] = weakref.WeakSet()


def _after_fork() -> None:
    for workers in _all:
        workers._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
