from __future__ import annotations

import asyncio

import pytest

from backends import Completion
from rewards import RewardError
from rewards.confined import PATIENCE, ConfinedReward
from rewards.workers import DEFAULT_SIZE, Workers


class Length(ConfinedReward):
    """The length of a response, computed in processes that several rewards share."""

    def __init__(self, workers: Workers, finished: list[str]) -> None:
        self.workers = workers
        self.finished = finished
        self.asked = asyncio.Event()

    async def verdict(self, text: str) -> float:
        self.asked.set()
        length = await self.workers.call(text)
        self.finished.append(text)
        return float(length)


async def test_runs_that_share_the_processes_are_served_in_turn() -> None:
    workers, finished = Workers("builtins:len", size=1, name="counting"), list[str]()
    greedy, modest = Length(workers, finished).session(), Length(workers, finished).session()
    first = asyncio.create_task(greedy.score("q", [Completion(text=f"{n:03}") for n in range(100)]))
    await greedy.asked.wait()
    assert await modest.score("q", [Completion(text="mine")]) == [4]
    assert finished.index("mine") <= DEFAULT_SIZE
    assert await first == [3] * 100
    workers.close()


async def test_outside_of_a_run_nothing_is_given_up() -> None:
    class Failing(ConfinedReward):
        calls = 0

        async def verdict(self, text: str) -> float:
            Failing.calls += 1
            raise RewardError("never")

    group = [Completion(text=str(n)) for n in range(9)]
    for reward, calls in ((Failing(), 9), (Failing().session(), PATIENCE + DEFAULT_SIZE - 1)):
        Failing.calls = 0
        with pytest.raises(RewardError, match="never"):
            await reward.score("q", group)
        assert Failing.calls <= calls
        assert (Failing.calls == 9) == (calls == 9)
