"""Starts and stops vLLM's CPU build, in an environment of its own: ``python -m tests.vllm.servers start``.

Two servers: the reference, which tells plain log-probabilities as vLLM does by default, and the small model, which
tells those of what it samples. They stay up until ``stop``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from backends.catalog import embedded_path
from tests.fake_server.ports import kept_port

ROOT = Path(__file__).parents[2]
VENV = Path(os.environ.get("ETS_VLLM_VENV", ROOT / ".venv-vllm"))
RUN = VENV / "run"
CONTEXT = 512
START_LIMIT = 600.0
"""Seconds that a server may take to come up; about a minute on an idle machine."""
STOP_LIMIT = 20.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server.

    Attributes:
        model: Which embedded model it serves, and under what name.
        flags: More arguments for vLLM.
    """

    model: str
    flags: tuple[str, ...] = ()

    @property
    def record(self) -> Path:
        """The file that says where it runs."""
        return RUN / f"{self.model.replace('/', '-')}.json"

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.record.with_suffix(".log")

    @property
    def url(self) -> str | None:
        """Its address, or None where it does not run."""
        try:
            url = str(json.loads(self.record.read_text(encoding="utf-8"))["url"])
        except (OSError, ValueError, KeyError):
            return None
        return url if _answers(url) else None

    def start(self, port: int) -> None:
        """Start it at a port, unless it runs."""
        if self.url is not None:
            return
        self.stop()
        RUN.mkdir(parents=True, exist_ok=True)
        command = [
            *(str(VENV / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(embedded_path(self.model)), "--served-model-name", self.model),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--dtype", "float32", "--max-model-len", str(CONTEXT), "--enforce-eager", "--max-num-seqs", "64"),
            # A seeded request whose prompt is computed in parts stops the engine of vLLM 0.32 on a CPU: it takes back a
            # draw by moving the generator's offset, which CPU generators do not have.
            *("--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192"),
            *self.flags,
        ]
        environment = os.environ | {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=VENV, start_new_session=True
            )
        record = {"url": f"http://127.0.0.1:{port}/v1", "pid": process.pid}
        self.record.write_text(json.dumps(record), encoding="utf-8")

    def wait(self, deadline: float) -> None:
        """Wait until it answers.

        Raises:
            SystemExit: It ended, or the deadline (monotonic seconds) passed; with the end of its log.
        """
        while self.url is None:
            if not _alive(self._pid()) or time.monotonic() > deadline:
                tail = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
                self.stop()
                raise SystemExit(f"vLLM with {self.model} did not come up:\n{tail}")
            time.sleep(0.5)

    def stop(self) -> None:
        """End it and all of its processes."""
        pid = self._pid()
        if pid is not None and _alive(pid):
            for number, limit in ((signal.SIGTERM, STOP_LIMIT), (signal.SIGKILL, STOP_LIMIT)):
                try:
                    os.killpg(pid, number)
                except ProcessLookupError:
                    break
                deadline = time.monotonic() + limit
                while _alive(pid) and time.monotonic() < deadline:
                    time.sleep(0.1)
        self.record.unlink(missing_ok=True)

    def _pid(self) -> int | None:
        try:
            return int(json.loads(self.record.read_text(encoding="utf-8"))["pid"])
        except (OSError, ValueError, KeyError):
            return None


REFERENCE = Server(model="tiny/qwen3")
SMALL = Server(model="tiny/qwen3-small", flags=("--logprobs-mode", "processed_logprobs"))
SERVERS = (REFERENCE, SMALL)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url.removesuffix('/v1')}/health", timeout=5):
            return True
    except (OSError, urllib.error.URLError):
        return False


def _alive(pid: int | None) -> bool:
    """Whether a process group has a process that is not dead, and is vLLM's: numbers are given anew after a restart."""
    if pid is None or b"vllm" not in _command(pid).lower():
        return False
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # A child that is dead stays until it is waited for.
    try:
        os.killpg(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def main() -> None:
    """Start or stop the servers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["start", "stop"])
    action = parser.parse_args().action
    if action == "stop":
        for server in SERVERS:
            server.stop()
        return
    began = time.monotonic()
    with contextlib.ExitStack() as ports:  # A server needs its port half a minute after it is told which.
        for server in SERVERS:
            server.start(ports.enter_context(kept_port()))
        for server in SERVERS:
            server.wait(began + START_LIMIT)
            print(f"vllm/{server.model}@{server.url}")
    print(
        f"up after {time.monotonic() - began:.0f} s; `make test-vllm` tests against them and stops them",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
