"""A thousand guided completions at once against a server, in one process: memory, time, and the event loop's pulse.

    python benchmarks/concurrency.py

The server is the tests' fake one, in a process of its own, which answers at once with scripted text; so what is
measured is the client: orchestration, HTTP and JSON. Orchestration time is the client's processor time per request. The
server tells how many requests it had; another one than that is not asked. A task that sleeps 5 ms at a time tells for
how long the event loop did nothing else; more than 100 ms of its own processor time, whatever else runs, is a failure.
What was imported and connected is frozen first (`gc.freeze`), as a server would do: the garbage collector stops
everything while it looks at it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # The fake server belongs to the tests, which are not installed.

import backends
from backends import Backend
from ets_agent import ETS, Result
from tests.fake_server import FakeProcess

_PULSE = 0.005
_LONGEST_BLOCK_CPU_MS = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one run measured."""

    completions: int
    requests: int | None
    seconds: float
    completions_per_second: float
    cpu_ms_per_request: float | None
    cpu_ms_per_completion: float
    peak_memory_mb: float
    memory_added_mb: float
    longest_block_ms: float
    longest_block_cpu_ms: float
    blocks_over_50_ms: int


@asynccontextmanager
async def pulse() -> AsyncIterator[list[tuple[float, float]]]:
    """Collect how late a task that sleeps a few milliseconds at a time wakes up, and what this thread did meanwhile.

    Both in seconds. The first is what an application feels; where other programs take the processor, it is more than
    the second, which is this thread's own processor time.
    """
    late: list[tuple[float, float]] = []

    async def beat() -> None:
        while True:
            due, before = time.perf_counter() + _PULSE, time.thread_time()
            await asyncio.sleep(_PULSE)
            late.append((time.perf_counter() - due, time.thread_time() - before))

    task = asyncio.create_task(beat())
    try:
        yield late
    finally:
        task.cancel()


async def measure(backend: Backend, completions: int, *, count: Callable[[], int] | None = None) -> Figures:
    """Run so many completions at once; ``count`` tells how many requests the server has had."""
    ets = ETS(backend, num_candidates=8, num_rollouts=4, num_steps=4, max_tokens=32)
    await ets.complete_many(["What is 3 + 4?"] * 8, concurrency=8, seed=0)  # Connections, imports.
    known = count() if count else 0
    gc.collect()
    gc.freeze()
    before, began, cpu = _peak_memory(), time.perf_counter(), time.process_time()
    async with pulse() as late:
        results = await ets.complete_many(["What is 3 + 4?"] * completions, concurrency=completions, seed=1)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    requests = count() - known if count else None
    failed = [result for result in results if not isinstance(result, Result)]
    if failed:
        raise SystemExit(f"{len(failed)} of {completions} completions failed; the first: {failed[0]}")
    peak = _peak_memory()
    return Figures(
        completions=completions,
        requests=requests,
        seconds=seconds,
        completions_per_second=completions / seconds,
        cpu_ms_per_request=1000 * cpu / requests if requests else None,
        cpu_ms_per_completion=1000 * cpu / completions,
        peak_memory_mb=peak,
        memory_added_mb=peak - before,
        longest_block_ms=1000 * max(wall for wall, _ in late),
        longest_block_cpu_ms=1000 * max(own for _, own in late),
        blocks_over_50_ms=sum(wall > 0.05 for wall, _ in late),
    )


def _peak_memory() -> float:
    """Most resident memory of this process so far (MB); Linux counts in KiB, macOS in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1e6 if sys.platform == "darwin" else 1e6 / 1024)


async def run(name: str | None, completions: int) -> Figures:
    """Measure a given server, or the fake one."""
    if name is not None:
        async with await backends.connect(name) as backend:
            return await measure(backend, completions)
    with FakeProcess() as server:
        async with await backends.connect(f"vllm/scripted@{server.base_url}") as backend:
            return await measure(backend, completions, count=lambda: server.stats()["total"])


def main() -> None:
    """Print the figures; exit with 1 if the event loop was blocked for too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=1000)
    parser.add_argument("--model", help="vllm/MODEL@URL of another server")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.completions < 1:
        parser.error("--completions must be at least 1")
    figures = asyncio.run(run(arguments.model, arguments.completions))
    if arguments.json:
        print(json.dumps(asdict(figures), indent=2))
    else:
        show(figures)
    if figures.longest_block_cpu_ms > _LONGEST_BLOCK_CPU_MS:
        raise SystemExit(
            f"the event loop did nothing else for {figures.longest_block_cpu_ms:.0f} ms of its own processor time; "
            f"allowed: {_LONGEST_BLOCK_CPU_MS:.0f} ms"
        )


def show(figures: Figures) -> None:
    """Print the figures in words."""
    requests = "" if figures.requests is None else f", {figures.requests} requests"
    print(f"{figures.completions} concurrent completions, M = 8, K = 4, I = 4{requests}")
    print(f"{figures.seconds:.1f} s, {figures.completions_per_second:.0f} completions a second")
    each = "" if figures.cpu_ms_per_request is None else f", {figures.cpu_ms_per_request:.2f} ms a request"
    print(f"{figures.cpu_ms_per_completion:.0f} ms of processor time a completion{each}")
    print(f"{figures.peak_memory_mb:.0f} MB at the peak, {figures.memory_added_mb:.0f} MB of it for these completions")
    print(
        f"event loop blocked for {figures.longest_block_ms:.0f} ms at most ({figures.longest_block_cpu_ms:.0f} ms of "
        f"its own processor time), {figures.blocks_over_50_ms} times over 50 ms"
    )


if __name__ == "__main__":
    main()
