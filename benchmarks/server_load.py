"""Many streaming clients at once against `ets serve`, in a process of its own: errors, waiting times, memory.

    python benchmarks/server_load.py

Each client asks a question, reads the stream to its end and asks the next one; told to come back later (429, 503), it
waits as long as it was told and asks again. Nothing else may go wrong. The server's memory is sampled twice a second
and must stay flat after a warm-up: a line through the samples must not rise or fall by more than a tenth, and its ends
are printed. The clients write and read bytes themselves, so that they leave the processor to the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

QUESTIONS = [
    f"Ada has {boxes} boxes with {cards} cards in each. Ada gives {given} to Ben. How many cards does Ada have now?"
    for boxes, cards, given in ((4, 25, 30), (6, 12, 20), (3, 40, 15), (7, 11, 42), (5, 18, 33))
]
MOST_CHANGE = 0.1
"""By how much memory may change after the warm-up, as a share."""
_SAMPLE_SECONDS = 0.5
_START_SECONDS = 120.0


@dataclass
class Figures:
    """What the clients saw."""

    first_block: list[float] = field(default_factory=list)
    """Seconds from the request to the first text."""
    total: list[float] = field(default_factory=list)
    """Seconds from the request to the end of the answer."""
    empty: int = 0
    """Answers without any text: their time was over before there was one."""
    come_back: int = 0
    """How often a client was told to come back later."""
    errors: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the beginning, and megabytes."""


@contextmanager
def serving(arguments: list[str]) -> Iterator[tuple[int, int]]:
    """Run a server; give its process and its port."""
    command = [sys.executable, "-c", "from ets_agent.cli import main; main()", "serve", "--port", "0", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    late = threading.Timer(_START_SECONDS, process.kill)
    late.start()
    try:
        line = process.stderr.readline()
        match = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        if match is None:
            raise SystemExit(f"the server did not start: {line}")
        late.cancel()
        threading.Thread(target=lambda: print(process.stderr.read(), end="", file=sys.stderr), daemon=True).start()  # type: ignore[union-attr]
        yield process.pid, int(match[1])
    finally:
        late.cancel()
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def client(port: int, until: float, figures: Figures, *, effort: str, model: str, seed: int) -> None:
    """Ask one question after the other until the time is up."""
    rng = random.Random(seed)
    await asyncio.sleep(rng.random())
    while time.perf_counter() < until:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": rng.choice(QUESTIONS)}],
            "stream": True,
            "ets": {"effort": effort},
        }
        try:
            wait = await ask(port, body, figures)
        except (OSError, asyncio.IncompleteReadError, ValueError, IndexError) as error:
            figures.errors[f"{type(error).__name__}: {error}"] += 1
            wait = 1.0
        if wait:  # All that were refused at once should not come back at once.
            await asyncio.sleep(wait * (0.5 + rng.random()))


async def ask(port: int, body: object, figures: Figures) -> float:
    """Ask one question; return after how many seconds to ask again."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        content = json.dumps(body).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        status, headers = _head(await reader.readuntil(b"\r\n\r\n"))
        if status in (429, 503):
            figures.come_back += 1
            return float(headers["retry-after"])
        if status != 200:
            figures.errors[f"status {status}"] += 1
            return 1.0
        first: float | None = None
        done = False
        async for line in reader:
            if first is None and b'"content":"' in line and b'"content":""' not in line:
                first = time.perf_counter() - began
            if b'data: {"error"' in line:
                figures.errors[line.decode().strip()] += 1
                return 1.0
            done = done or line.startswith(b"data: [DONE]")
        if not done:
            raise ValueError("a stream ended early")
        if first is None:
            figures.empty += 1
        else:
            figures.first_block.append(first)
        figures.total.append(time.perf_counter() - began)
        return 0.0
    finally:
        writer.close()


def _head(raw: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = raw.decode().splitlines()
    return int(first.split()[1]), {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
    }


async def sample(pid: int, figures: Figures, began: float) -> None:
    """Note the server's resident memory again and again."""
    while True:
        figures.memory.append((time.perf_counter() - began, resident(pid)))
        await asyncio.sleep(_SAMPLE_SECONDS)


def resident(pid: int) -> float:
    """Return a process's resident memory (MB)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def load(pid: int, port: int, arguments: argparse.Namespace) -> Figures:
    """Let all clients ask."""
    figures, began = Figures(), time.perf_counter()
    sampling = asyncio.create_task(sample(pid, figures, began))
    async with asyncio.TaskGroup() as group:
        for seed in range(arguments.clients):
            until = began + arguments.seconds
            asking = client(port, until, figures, effort=arguments.effort, model=arguments.model, seed=seed)
            group.create_task(asking)
    sampling.cancel()
    return figures


def trend(memory: list[tuple[float, float]], warm_up: float) -> tuple[float, float]:
    """Return the beginning and the end of a line through the samples after the warm-up (MB)."""
    times, sizes = np.array([each for each in memory if each[0] >= warm_up]).T
    slope, level = np.polyfit(times, sizes, 1)
    return float(level + slope * times[0]), float(level + slope * times[-1])


def report(figures: Figures, arguments: argparse.Namespace) -> bool:
    """Print what happened; say whether all is well."""
    count = len(figures.total)
    print(
        f"{arguments.clients} streaming clients for {arguments.seconds:g} s, {arguments.model}, effort "
        f"{arguments.effort}, {arguments.concurrency} runs at a time, {arguments.queue} waiting"
    )
    print(
        f"{count} answers ({count / arguments.seconds:.1f}/s), {figures.empty} of them empty, "
        f"{figures.come_back} times told to come back later (429, 503)"
    )
    for name, seconds in (("first block", figures.first_block), ("whole answer", figures.total)):
        if seconds:
            shown = ", ".join(f"p{rank} {np.percentile(seconds, rank):.2f} s" for rank in (50, 90, 99, 100))
            print(f"{name}: {shown}")
    begin, end = trend(figures.memory, arguments.warm_up)
    after = [size for at, size in figures.memory if at >= arguments.warm_up]
    change = end / begin - 1
    print(
        f"memory after {arguments.warm_up:g} s: {min(after):.0f} to {max(after):.0f} MB, "
        f"trend {begin:.0f} to {end:.0f} MB ({change:+.1%})"
    )
    for error, times in figures.errors.most_common():
        print(f"error, {times} times: {error}")
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return not figures.errors and abs(change) <= MOST_CHANGE and count > 0


def main() -> None:
    """Print the figures; exit with 1 where something went wrong or memory was not flat."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--warm-up", type=float, default=20.0)
    parser.add_argument("--model", default="tiny/qwen3")
    parser.add_argument("--effort", default="medium")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--queue", type=int, default=128)
    arguments = parser.parse_args()
    if not 0 <= arguments.warm_up < arguments.seconds - 2:
        parser.error("--warm-up must end before the rest does")
    options = ["--model", arguments.model, "--concurrency", str(arguments.concurrency), "--queue", str(arguments.queue)]
    with serving(options) as (pid, port):
        figures = asyncio.run(load(pid, port, arguments))
    if not report(figures, arguments):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
