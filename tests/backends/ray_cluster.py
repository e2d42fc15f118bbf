"""A Ray cluster on this machine, and what its tests look at."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backends import Backend, Completion, Prompt, SamplingParams
from backends.ray import RayBackend
from ets_agent import ETS, Result
from rewards import Reward

MODEL = "tiny/qwen3-small"
QUESTION = "Will has 41 tickets. Ada gives Will another 72. How many tickets does Will have now?"
PLAIN = SamplingParams()


class Digits(Reward):
    """Counts odd digits: a function of the text alone."""

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        return [sum(letter in "13579" for letter in completion.text) / 10 for completion in completions]


def guided(backend: Backend) -> ETS:
    return ETS(
        backend, Digits(), num_candidates=3, num_rollouts=2, block_size=8, max_tokens=40, temperature=1.3, seed=3
    )


def told(result: Result | Exception) -> dict[str, Any]:
    """All that a result says, but for the time that it took, and for what depends on rounding in a batch."""
    assert isinstance(result, Result), result
    logprobs: Any = {"steps": {"__all__": {"rollouts": {"__all__": {"__all__": {"logprob"}}}}}}
    return result.model_dump(exclude={"usage": {"seconds"}, **logprobs})


def descendants(root: int) -> set[int]:
    """Processes that were started by a process, or by those that it started."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found: set[int] = set()
    while more := {pid for pid, parent in parents.items() if parent in {root, *found}} - found:
        found |= more
    return found


def alive(pids: set[int]) -> set[int]:
    """Those of some processes that still run."""
    left = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            left.add(pid)
    return left


def wait_until_gone(pids: set[int]) -> set[int]:
    end = time.monotonic() + 60
    while (left := alive(pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return left


@contextmanager
def running_cluster(**system: Any) -> Iterator[Any]:
    """Two nodes of one core each; this process is connected to the first one.

    Args:
        **system: Settings of Ray's own.
    """
    import ray
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # Paths of sockets must be short.
    before = descendants(os.getpid())
    started: set[int] = set()
    left: set[int] = set()
    head: dict[str, Any] = {"num_cpus": 1, "include_dashboard": False, "_system_config": system}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster()
        try:
            cluster.add_node(**head)
            cluster.add_node(num_cpus=1)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            yield cluster
        finally:
            started = descendants(os.getpid()) - before
            ray.shutdown()
            cluster.shutdown()  # type: ignore[no-untyped-call]
            left = wait_until_gone(started)
            shutil.rmtree(folder, ignore_errors=True)
    assert len(started) > 4, "this is how the processes of Ray are known"
    assert not left, "Ray's processes are gone after the tests"


def actors(backend: RayBackend) -> list[Any]:
    return [member.backend._actor for member in backend._roster.members]  # type: ignore[attr-defined]


async def inside(actor: Any, look: Callable[[Any], Any]) -> Any:
    """What a function finds in the actor's process."""
    return await actor.__ray_call__.remote(look)


async def rows_of(actor: Any) -> int:
    """Sequences that the actor's model is working on, or has waiting."""
    found: int = await inside(actor, lambda replica: len(replica._loading.result()._engine._owners))
    return found


def rollouts_hang(replica: Any) -> None:
    """Have no rollout of an actor end: its runs are certainly under way whenever the actor is lost."""
    replica.hanging = 0

    async def rollout(*_: Any) -> None:
        replica.hanging += 1
        await asyncio.Event().wait()

    replica.rollout = rollout


async def until(condition: Callable[[], Any], *, seconds: float = 60.0) -> None:
    """Wait for something in another process."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def back_at_work(backend: RayBackend, member: Any) -> bool:
    """Whether a member is healthy again. Ray starts its actor, which loads the model while runs go elsewhere."""
    start = await backend.begin(QUESTION, max_tokens=2, params=PLAIN)
    assert len(await backend.rollout([start], 2, seed=0)) == 1
    await asyncio.sleep(0.2)  # The other processes need the processor.
    return bool(member.healthy)


async def equals(found: Callable[[], Any], expected: Any) -> bool:
    return bool(await found() == expected)
