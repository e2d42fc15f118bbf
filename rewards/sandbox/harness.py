"""Tests against a program, both inside a sandbox and in processes of their own; see `rewards.sandbox.inside.tester`."""

from __future__ import annotations

import binascii
import functools
import json
import marshal
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from rewards.errors import RewardError
from rewards.sandbox.base import Limits, Sandbox
from rewards.sandbox.command import inside, packages
from rewards.sandbox.errors import SandboxError

_MODULES = ("codec", "exceptions", "peer", "remote", "program", "canonical", "sites", "watch", "tester")
"""In the order in which they import each other."""

_GRACE_SECONDS = 1.0
"""Between the time at which tests are interrupted and that at which the tester is ended, in case that does not help."""
_START_SECONDS = 5.0
"""More until the sandbox is: for the tester's own start and end on a busy machine."""
_SPARE_PROCESSES = 3
"""The tester, its watch, and the program itself."""

_LOADER = """
import binascii, marshal, sys, types, zlib
for name in ("rewards", "rewards.sandbox", "rewards.sandbox.inside"):
    package = sys.modules[name] = types.ModuleType(name)
for name, code in {modules}:
    module = types.ModuleType(package.__name__ + "." + name)
    sys.modules[module.__name__] = module
    setattr(package, name, module)
    exec(code, module.__dict__)
module.main()
"""
_COMPILED = "marshal.loads(zlib.decompress(binascii.a2b_base64({packed!r})))"


Source: TypeAlias = tuple[str, str]
"""A form of a program: what comes before what was written, such as the prompt, and that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a program's tests.

    Attributes:
        passed: Tests that passed.
        total: All tests; at least one.
        problem: What went wrong first, for people; the program may have had a say in it.
    """

    passed: int
    total: int
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What to run a program against.

    Attributes:
        prompt: What the program was asked to complete, if that is Python: its helpers and imports are there for tests.
        entry_point: The function to test, ``candidate`` for the tests.
        seconds: For all tests, or inputs, together.
        limits: What tests and program may use; the wall and CPU limits follow from ``seconds``.
    """

    prompt: str = ""
    entry_point: str | None = None
    seconds: float = 5.0
    limits: Limits = field(default_factory=Limits)


async def run_tests(sandbox: Sandbox, sources: Sequence[Source], tests: Sequence[str], task: Task) -> Verdict:
    """Run tests against a program.

    Every ``assert`` is a test, reached in any way. It passes if it was reached and held each time; one that fails does
    not keep others from being reached. A text without any is one test, passed if nothing raises, and one that does not
    come to its end is one test more that failed. A function ``check`` of a text is called with the entry point.

    Args:
        sandbox: Where to run them.
        sources: Forms of the program, by preference: the first that is Python and defines the entry point is run; if
            there is none, the longest beginning of one that is and does.
        tests: Texts of tests, each run in a namespace of its own.
        task: What else to know.

    Raises:
        SandboxError: The sandbox failed.
        RewardError: The tests are no Python.
    """
    answer = await _run(sandbox, sources, task, tests=list(tests), inputs=None)
    if answer is None:
        return Verdict(passed=0, total=1, problem="the program took too much, and the tester with it")
    if "broken" in answer:
        raise RewardError(answer["broken"])
    return Verdict(passed=answer["passed"], total=answer["total"], problem=answer["problem"])


async def run_inputs(
    sandbox: Sandbox, sources: Sequence[Source], inputs: Sequence[str | Sequence[Any]], task: Task
) -> list[str | None] | None:
    """Run a program on inputs.

    Args:
        sandbox: Where to run it.
        sources: Forms of the program, by preference, as in `run_tests`.
        inputs: Lists of arguments of the entry point, JSON values, or expressions as text.
        task: What else to know.

    Returns:
        For each input the canonical form of what came back, or ``"! "`` and the class of what was raised, or None if it
        is no expression. None altogether if the program does not load.

    Raises:
        SandboxError: The sandbox failed.
    """
    answer = await _run(sandbox, sources, task, tests=[], inputs=list(inputs))
    found: list[str | None] | None = None if answer is None else answer["behavior"]
    return found


async def _run(
    sandbox: Sandbox, sources: Sequence[Source], task: Task, *, tests: list[str], inputs: list[Any] | None
) -> dict[str, Any] | None:
    """Return the tester's answer, None if it came to none because of the program.

    Raises:
        SandboxError: The tester did not get to the point where the program can be the cause.
    """
    nonce = secrets.token_hex(16)
    request = {
        "nonce": nonce,
        "sources": list(sources),
        "prompt": task.prompt,
        "entry_point": task.entry_point,
        "tests": tests,
        "inputs": inputs,
        "seconds": task.seconds,
        "grace": _GRACE_SECONDS,
        "memory": task.limits.memory_bytes,
        "paths": packages(),
    }
    limits = replace(
        task.limits,
        wall_seconds=task.seconds + _GRACE_SECONDS + _START_SECONDS,
        cpu_seconds=task.seconds + _GRACE_SECONDS,
        processes=task.limits.processes + _SPARE_PROCESSES,
    )
    source, stdin = _source(compiled=sandbox.own_interpreter), json.dumps(request).encode()
    execution = await sandbox.run(source, stdin=stdin, limits=limits, first=True)
    ready, *lines = execution.stdout.split(b"\n")
    if ready != b"ready":
        raise SandboxError(f"the tester did not start: {execution.stderr or f'exit status {execution.returncode}'}")
    for line in lines:
        answer = _read(line)
        if answer.get("nonce") == nonce:
            return answer
    return None


@functools.cache
def _source(*, compiled: bool) -> str:
    """Return the harness as one program, compiled where it is this interpreter that runs it, which saves a third."""
    texts = [(name, inside(name)) for name in _MODULES]
    if not compiled:
        return _LOADER.format(modules=repr(texts))
    codes = marshal.dumps([(name, compile(text, f"<{name}>", "exec", optimize=2)) for name, text in texts])
    packed = binascii.b2a_base64(zlib.compress(codes, 9), newline=False).decode()
    return _LOADER.format(modules=_COMPILED.format(packed=packed))


def _read(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
