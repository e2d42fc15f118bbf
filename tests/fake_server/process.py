"""The fake server as a process of its own: for benchmarks, and to be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.fake_server.app import STATS

_ROOT = Path(__file__).parents[2]
_PATIENCE = 60.0
"""Seconds that starting may take, or anything else that is waited for; a local model has to be loaded."""


class FakeProcess:
    """A fake server in a process of its own, which ends with this one's `with` block, or with this process.

    Args:
        model: ``scripted`` or the name of an embedded model.
        responses: What a scripted model answers, with weights.
        port: Where; 0 finds a free port. A server that was killed can be started again at its port.
        options: More arguments of ``python -m tests.fake_server``, for example ``["--profile", "chat"]``.
    """

    def __init__(
        self,
        model: str = "scripted",
        *,
        responses: Mapping[str, float] | None = None,
        port: int = 0,
        options: tuple[str, ...] = (),
    ) -> None:
        """Start nothing yet."""
        self._arguments = ["--model", model, *options]
        if responses is not None:
            self._arguments += ["--responses", json.dumps(dict(responses))]
        self._port = port
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        """Where it is, without a path."""

    @property
    def base_url(self) -> str:
        """What OpenAI's SDK takes as ``base_url``."""
        return f"{self.url}/v1"

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def stats(self) -> dict[str, int]:
        """Return ``total``, ``active``, ``most_active`` and ``aborted`` of its records."""
        with urllib.request.urlopen(f"{self.url}{STATS}", timeout=_PATIENCE) as response:
            totals: dict[str, int] = json.load(response)
        return totals

    def wait(self, condition: Callable[[dict[str, int]], bool], timeout: float = _PATIENCE) -> None:
        """Ask again and again until something is true of `stats`; call it in a thread from async code.

        Raises:
            TimeoutError: It did not become true within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while not condition(self.stats()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not so after {timeout:g} s: {self.stats()}")
            time.sleep(0.005)

    def kill(self) -> None:
        """Kill it at once (SIGKILL): its connections are reset in the middle of whatever they were doing."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        """Start it; return when it has said where it listens.

        Raises:
            RuntimeError: It ended, or it took more than a minute.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fake_server", "--port", str(self._port), *self._arguments],
            cwd=_ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            # It ends when its input does, so it cannot outlive this process.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        late = threading.Timer(_PATIENCE, self._process.kill)
        late.start()
        try:
            line = self._process.stdout.readline()
        finally:
            late.cancel()
            late.join()
        if not line.startswith("http"):
            self.__exit__(None, None, None)
            raise RuntimeError(f"the fake server's process did not start: {line!r}")
        self.url = line.strip()
        self._port = int(self.url.rpartition(":")[2])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, by force if it does not end by itself."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
