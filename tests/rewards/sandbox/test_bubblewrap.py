"""What is particular to bubblewrap: who the program is, and what namespaces it can make."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rewards.sandbox import Sandbox, SandboxError
from rewards.sandbox.bubblewrap import Bubblewrap
from tests.rewards.sandbox.available import available

_ROOT = Path(__file__).parents[3]

_AS_ORDINARY_USER = """
import asyncio
from rewards.sandbox.bubblewrap import Bubblewrap
from rewards.sandbox.harness import Task, run_tests
from rewards.sandbox.selection import probe

sandbox = Bubblewrap()
print(repr(probe(sandbox)))
print(asyncio.run(run_tests(sandbox, [("", "def f(): return 1")], ["assert f() == 1"], Task())).passed)
theft = "def f():\\n import glob\\n return [open(p).read() for p in ('/proc/1/environ', '/proc/1/maps')]"
print(asyncio.run(run_tests(sandbox, [("", theft)], ["assert f()"], Task())).problem)
print(asyncio.run(sandbox.run("import ctypes\\nprint(ctypes.CDLL(None).unshare(0x10000000))")).stdout)
"""


@pytest.fixture
def bubblewrap() -> Sandbox:
    return available("bubblewrap")


async def test_no_program_can_make_a_user_namespace(bubblewrap: Sandbox) -> None:
    """There it would be root: it could mount memory without a limit, and reach more of the kernel."""
    program = """
import ctypes, os
libc = ctypes.CDLL(None)
print(libc.unshare(0x10000000), libc.syscall(56 if os.uname().machine == "x86_64" else 220, 0x10000000, 0, 0, 0, 0))
"""
    assert (await bubblewrap.run(program)).stdout == b"-1 -1\n"


async def test_no_program_can_have_memory_that_is_nobodys(bubblewrap: Sandbox) -> None:
    program = """
import ctypes, os
try:
    os.memfd_create("m")
except OSError as error:
    print(error.errno, ctypes.CDLL(None).shmget(0, 4096, 0o1600))
"""
    assert (await bubblewrap.run(program)).stdout == b"1 -1\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be different users")
async def test_each_run_of_root_is_a_user_of_its_own(bubblewrap: Sandbox) -> None:
    program = "import os\nprint(os.getresuid(), os.getgroups())"
    found = await asyncio.gather(*(bubblewrap.run(program) for _ in range(4)))
    users = {execution.stdout for execution in found}
    assert len(users) == 4
    assert all(text.endswith(b" []\n") and not text.startswith(b"(0") for text in users)


@pytest.mark.skipif(os.geteuid() != 0, reason="this is an ordinary user, so all other tests show it")
def test_an_ordinary_user_has_a_sandbox_too() -> None:
    python = shutil.which(f"python3.{sys.version_info.minor}", path="/usr/bin")
    setpriv = shutil.which("setpriv")
    if python is None or setpriv is None:
        pytest.skip("needs setpriv, and this Python version in /usr/bin for another user to run")
    paths = os.pathsep.join([str(_ROOT), *(path for path in sys.path if "site-packages" in path)])
    user = [setpriv, "--reuid", "54321", "--regid", "54321", "--clear-groups"]
    if subprocess.run([*user, python, "-c", "import pydantic"], env={"PYTHONPATH": paths}, check=False).returncode != 0:
        pytest.skip("another user cannot read this environment")
    result = subprocess.run(
        [*user, python, "-c", _AS_ORDINARY_USER],
        env={"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    if "bwrap" in result.stdout:
        pytest.skip(f"ordinary users have no namespaces here: {result.stdout}")
    assert result.stdout.splitlines() == [
        "''",
        "1",
        "PermissionError: [Errno 13] Permission denied: '/proc/1/environ'",
        "b'-1\\n'",
    ], result.stderr


async def test_a_sandbox_that_cannot_start_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(SandboxError, match="No permissions to create new namespace"):
        await Bubblewrap(str(broken)).run("pass")
    broken.unlink()
    with pytest.raises(SandboxError, match="could not be started"):
        await Bubblewrap(str(broken)).run("pass")
