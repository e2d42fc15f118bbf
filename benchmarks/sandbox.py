"""Measure the sandbox: short programs a second, and the time for all of HumanEval's solutions.

    python benchmarks/sandbox.py [HUMANEVAL.jsonl]

Each program has a sandbox of its own: namespaces, a process for the tests and one for the program.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from backends import Completion
from rewards.code import CodeTests
from rewards.sandbox import Sandbox, select
from rewards.sandbox.process import places

HUMANEVAL = Path(__file__).parents[1] / ".." / "shared" / "data" / "humaneval" / "HumanEval.jsonl"
PROGRAMS = 200


async def short_programs(sandbox: Sandbox) -> float:
    """Return how many short programs are judged in a second, many at a time."""
    reward = CodeTests("assert f(3) == 9", sandbox=sandbox)
    texts = [f"def f(x):\n    return x * x  # {number}" for number in range(PROGRAMS)]
    began = time.perf_counter()
    scores = await reward.score("", [Completion(text=text) for text in texts])
    assert scores == [1.0] * PROGRAMS
    return PROGRAMS / (time.perf_counter() - began)


async def one_program(sandbox: Sandbox) -> float:
    """Return the median time of a short program by itself, in seconds."""
    reward = CodeTests("assert f(3) == 9", sandbox=sandbox)
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        await reward.score("", [Completion(text="def f(x): return x * x")])
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


async def humaneval(sandbox: Sandbox, path: Path) -> None:
    """Print how long the canonical solutions take, and what they and bodies that return None get."""
    tasks = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]  # noqa: ASYNC240 - not yet
    for name, bodies in (
        ("canonical solutions", [task["canonical_solution"] for task in tasks]),
        ("'return None'", ["    return None\n"] * len(tasks)),
    ):
        began = time.perf_counter()
        scores = await asyncio.gather(
            *(
                CodeTests(task["test"], task["prompt"], task["entry_point"], timeout=30.0, sandbox=sandbox).score(
                    task["prompt"], [Completion(text=body)]
                )
                for task, body in zip(tasks, bodies, strict=True)
            )
        )
        seconds = time.perf_counter() - began
        full = sum(score == [1.0] for score in scores)
        print(f"HumanEval, {len(tasks)} {name}: {seconds:.1f} s, {full} of them score 1")


async def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("humaneval", nargs="?", type=Path, default=HUMANEVAL, help="HumanEval.jsonl")
    path = parser.parse_args(arguments).humaneval
    sandbox = select("auto")
    print(f"{sandbox.name}, {places()} at a time")
    print(f"{PROGRAMS} short programs: {await short_programs(sandbox):.1f} a second")
    print(f"one short program: {1000 * await one_program(sandbox):.0f} ms")
    if path.exists():
        await humaneval(sandbox, path)
    else:
        print(f"HumanEval: there is no {path}")


if __name__ == "__main__":
    asyncio.run(main())
