"""The example client runs, offline."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.mcp_server.conftest import ROOT


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / "mcp_client.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


def test_the_client_shows_progress_and_the_answer() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "step 1 of 4: drawing and judging candidates" in done.stdout
    assert "Answer      241" in done.stdout


def test_the_client_shows_why_a_request_is_refused() -> None:
    done = run("--timeout", "1e9")
    assert (done.returncode, done.stderr) == (1, "timeout is 1e+09; allowed: at most 120 seconds\n")
