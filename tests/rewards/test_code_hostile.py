"""Programs that try to do harm or to deceive: each is stopped, scores 0, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import Completion
from rewards.code import CodeTests
from rewards.sandbox import Limits, Sandbox, harness
from tests.rewards.sandbox.available import available
from tests.rewards.sandbox.leftovers import Leftovers

_PROGRAMS = sorted((Path(__file__).parent / "hostile").glob("[!_]*.py"))
_TEST = re.compile(r"^# test: (.*)$", re.MULTILINE)
_BY_DEFAULT = "assert f(3) == 9"
_SECONDS = 1.0


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return available("auto")


@pytest.fixture
def secrets(tmp_path: Path) -> Iterator[list[str]]:
    """Files that a program must not get to see, one of them in the home folder."""
    paths = [tmp_path / "secret", Path.home() / f"hostile-secret-{os.getpid()}"]
    for path in paths:
        path.write_text("s3cret")
    yield [str(path) for path in paths]
    for path in paths:
        path.unlink()


@pytest.mark.parametrize("path", _PROGRAMS, ids=lambda path: path.stem)
def test_hostile_programs(
    path: Path, sandbox: Sandbox, secrets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    monkeypatch.setattr(harness, "_START_SECONDS", 60.0)  # The sandbox itself would end them no sooner.
    program = path.read_text()
    leftovers = Leftovers()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        constants = f"PATHS = {[*secrets, str(tmp_path)]!r}\nPORT = {listener.getsockname()[1]}\n"
        test = constants + ("\n".join(_TEST.findall(program)) or _BY_DEFAULT)
        reward = CodeTests(test, "", "f", timeout=_SECONDS, sandbox=sandbox)
        reward._limits = leftovers.limits()
        began = time.monotonic()
        assert asyncio.run(reward.score("", [Completion(text=program)])) == [0.0]
        assert time.monotonic() - began < _SECONDS + 30
        with pytest.raises(BlockingIOError):
            listener.accept()
    leftovers.check()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "secret"]
    assert Path(secrets[0]).read_text() == "s3cret"


async def test_hostile_programs_do_not_disturb_each_other_or_honest_ones(sandbox: Sandbox) -> None:
    leftovers = Leftovers()
    limits = leftovers.limits()
    honest = [f"# {i}\ndef f(x): return x * x" for i in range(20)]
    hostile = [path.read_text() for path in _PROGRAMS if path.stem in ("fork_bomb", "kills_everything", "allocation")]

    async def score(text: str, seconds: float) -> list[float | None]:
        reward = CodeTests("assert f(3) == 9", "", "f", timeout=seconds, sandbox=sandbox)
        reward._limits = limits
        return await reward.score("", [Completion(text=text)])

    # Who is honest has time to be slow on a busy machine, and takes turns with the others all the same.
    pairs = [(score(text, 60.0), score(f"# {i}\n{hostile[i % 3]}", 3.0)) for i, text in enumerate(honest)]
    assert await asyncio.gather(*(each for pair in pairs for each in pair)) == [[1.0], [0.0]] * 20
    leftovers.check()


async def test_memory_over_children_stays_within_reach_of_its_limit(sandbox: Sandbox) -> None:
    """Twenty processes of 400 MiB each are stopped not long after they have 512 together."""
    program = next(path for path in _PROGRAMS if path.stem == "allocation_over_children").read_text()
    leftovers = Leftovers()
    reward = CodeTests("assert f(3) == 9", "", "f", timeout=20, sandbox=sandbox)
    reward._limits = leftovers.limits()
    task = asyncio.create_task(reward.score("", [Completion(text=program)]))
    most = 0
    while not task.done():
        # Not what is free on the machine, which others use, too.
        most = max(most, sum(map(_memory, leftovers.processes())))
        await asyncio.sleep(0.005)
    assert await task == [0.0]
    assert most < 3 * Limits().memory_bytes
    assert _memory(os.getpid()) > 0, "memory can be measured here"


def _memory(pid: int) -> int:
    """Return the bytes that a process does not share with the files of its programs."""
    with contextlib.suppress(OSError):  # It may be gone.
        lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
        return sum(int(line[1]) for line in lines if line and line[0] in ("RssAnon:", "RssShmem:")) * 1024
    return 0


def test_the_corpus_is_complete() -> None:
    assert len(_PROGRAMS) >= 35
    assert resource.getrlimit(resource.RLIMIT_NPROC)[0] > 100, "fork bombs are stopped by the sandbox, not by the test"
