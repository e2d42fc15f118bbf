from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from backends import Completion, Prompt
from rewards import RewardError
from rewards.confined import ConfinedReward
from rewards.shared_workers import PATIENCE
from rewards.workers import DEFAULT_SIZE, Workers


class Length(ConfinedReward):
    """The length of a response, computed in processes that several rewards share."""

    def __init__(self, workers: Workers, finished: list[str]) -> None:
        self.workers = workers
        self.finished = finished
        self.asked = asyncio.Event()

    async def judge(self, prompt: Prompt, completion: Completion) -> float:
        self.asked.set()
        length = await self.ask(completion.text)
        self.finished.append(completion.text)
        return float(length)


def length_when_there(text: str) -> int:
    """Return the length of a text; if it is a path, once something is there."""
    while "/" in text and not Path(text).exists():
        time.sleep(0.01)
    return len(text)


async def test_runs_that_share_the_processes_are_served_in_turn(tmp_path: Path) -> None:
    workers, finished = Workers(length_when_there, size=1, name="counting"), list[str]()
    greedy, modest = Length(workers, finished).session(), Length(workers, finished).session()
    gate = tmp_path / "gate"
    texts = [str(gate), *(f"{n:03}" for n in range(99))]
    first = asyncio.create_task(greedy.score("q", [Completion(text=text) for text in texts]))
    await greedy.asked.wait()
    second = asyncio.create_task(modest.score("q", [Completion(text="mine")]))
    await modest.asked.wait()
    gate.touch()  # Only now that both have asked is anything done.
    assert await second == [4]
    assert finished.index("mine") <= DEFAULT_SIZE
    assert await first == [len(text) for text in texts]
    workers.close()


class Failing(Workers):
    """Processes whose every call fails, without any."""

    def __init__(self) -> None:
        super().__init__("builtins:len", name="failing")
        self.calls = 0

    async def call(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        raise RewardError("never")


async def test_outside_of_a_run_nothing_is_given_up() -> None:
    group = [Completion(text=str(n)) for n in range(9)]
    workers = Failing()
    with pytest.raises(RewardError, match="never"):
        await Length(workers, []).score("q", group)
    assert workers.calls == 9
    with pytest.raises(RewardError, match="never"):
        await Length(workers, []).session().score("q", group)
    assert workers.calls <= 9 + PATIENCE + DEFAULT_SIZE - 1
