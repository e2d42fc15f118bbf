"""Docker without a daemon: what the client is asked to do, and what becomes of containers that must end."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from pathlib import Path

import pytest

from rewards.sandbox import Limits, SandboxError
from rewards.sandbox.base import MIB
from rewards.sandbox.docker import Docker
from rewards.sandbox.harness import Task, run_tests

_FAKE = """#!{python}
import json, os, sys, time
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1] == "run":
    command = sys.argv[sys.argv.index("image") + 1:]
    settings = json.loads(command[5])
    settings["filter"] = False
    command[5] = json.dumps(settings)
    os.execv({python!r}, [{python!r}, *command[1:]])
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def docker(tmp_path: Path, log: Path) -> Docker:
    """A client that runs the command of a container right here."""
    path = tmp_path / "docker"
    path.write_text(_FAKE.format(python=sys.executable, log=str(log)))
    path.chmod(0o755)
    return Docker(str(path), image="image")


def _calls(log: Path) -> list[list[str]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


async def test_a_container_has_no_network_no_rights_and_limits(docker: Docker, log: Path) -> None:
    limits = Limits(memory_bytes=100 * MIB, processes=7, file_bytes=MIB)
    execution = await docker.run("print(6 * 7)", limits=limits)
    assert execution.stdout == b"42\n"
    (call,) = _calls(log)
    options = call[: call.index("image")]
    assert options[:4] == ["run", "--rm", "--interactive", "--read-only"]
    pairs = dict(itertools.pairwise(options))
    assert pairs["--network"] == "none"
    assert pairs["--memory"] == pairs["--memory-swap"] == str(100 * MIB)
    assert pairs["--pids-limit"] == "8", "one of them watches over the program"
    assert pairs["--cap-drop"] == "ALL"
    assert pairs["--security-opt"] == "no-new-privileges"
    assert pairs["--user"] == "65534:65534"
    assert pairs["--pull"] == "never"
    assert pairs["--tmpfs"].endswith(f"size={MIB}")


async def test_every_container_has_a_name_of_its_own(docker: Docker, log: Path) -> None:
    await asyncio.gather(*(docker.run("pass") for _ in range(3)))
    names = {call[call.index("--name") + 1] for call in _calls(log)}
    assert len(names) == 3


async def test_a_container_that_takes_too_long_is_killed_by_name(docker: Docker, log: Path) -> None:
    execution = await docker.run("while True: pass", limits=Limits(wall_seconds=0.2))
    assert execution.timed_out
    run, remove = _calls(log)
    assert remove == ["rm", "--force", run[run.index("--name") + 1]]


async def test_a_container_whose_run_is_cancelled_is_killed_by_name(docker: Docker, log: Path) -> None:
    task = asyncio.create_task(docker.run("while True: pass", limits=Limits(wall_seconds=1000)))
    while not _calls(log):
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    run, remove = _calls(log)
    assert remove == ["rm", "--force", run[run.index("--name") + 1]]


async def test_a_client_without_a_daemon_is_a_failure_of_the_sandbox(tmp_path: Path) -> None:
    path = tmp_path / "docker"
    path.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 125\n")
    path.chmod(0o755)
    with pytest.raises(SandboxError, match="Cannot connect to the Docker daemon"):
        await Docker(str(path)).run("pass")


async def test_tests_run_in_it_without_being_compiled_for_this_interpreter(docker: Docker) -> None:
    verdict = await run_tests(docker, [("", "def f(): return 1")], ["assert f() == 1\nassert f() == 2"], Task())
    assert (verdict.passed, verdict.total) == (1, 2)


def test_the_image_is_that_of_this_python() -> None:
    assert Docker().image == f"python:{sys.version_info.major}.{sys.version_info.minor}-slim"
