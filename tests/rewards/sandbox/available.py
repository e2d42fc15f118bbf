"""The sandboxes that tests can use here."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from rewards.sandbox import Sandbox, SandboxName, SandboxUnavailableError, select


def available(name: SandboxName) -> Sandbox:
    """Return a sandbox, or skip the test where this machine has none; one that should work has to."""
    if name in ("auto", "bubblewrap") and _starts():
        return select("bubblewrap")
    try:
        return select(name)
    except SandboxUnavailableError as error:
        pytest.skip(str(error).splitlines()[0])


def _starts() -> bool:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return False
    command = [bwrap, "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
