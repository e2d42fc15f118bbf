"""Batches: what one item does, and what the caller gave, costs no other item its result."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from backends import Prompt, SamplingParams, State
from backends.scripted import ScriptedBackend
from ets_agent import ETS, ConfigError, Result

SETTINGS: dict[str, Any] = {"num_candidates": 2, "num_rollouts": 1, "max_tokens": 6, "num_steps": 1, "seed": 1}


class Cancelling(ScriptedBackend):
    """Waits for something that somebody else cancels, where the prompt says so."""

    async def begin(self, prompt: Prompt, *, max_tokens: int, params: SamplingParams) -> State:
        if prompt == "bad":
            cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            cancelled.cancel()
            await cancelled
        return await super().begin(prompt, max_tokens=max_tokens, params=params)


async def test_a_cancellation_from_within_is_that_items_failure() -> None:
    ets = ETS(Cancelling(["a #### 1"]), "self_consistency", **SETTINGS)
    good, bad, other = await ets.complete_many(["good", "bad", "good"])
    assert isinstance(good, Result)
    assert isinstance(other, Result)
    assert isinstance(bad, RuntimeError)
    assert isinstance(bad.__cause__, asyncio.CancelledError)


async def test_a_cancelled_batch_is_cancelled() -> None:
    ets = ETS(ScriptedBackend(["a #### 1"], delay=60), "self_consistency", **SETTINGS)
    batch = asyncio.create_task(ets.complete_many(["q"] * 3))
    await asyncio.sleep(0.01)
    batch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await batch


async def test_an_error_of_the_listeners_ends_the_batch_as_it_is() -> None:
    def listen(index: int, result: Result | Exception) -> None:
        raise LookupError("no room")

    ets = ETS(ScriptedBackend(["a #### 1"]), "self_consistency", **SETTINGS)
    with pytest.raises(LookupError, match="no room"):
        await ets.complete_many(["q"] * 3, on_result=listen)


@pytest.mark.parametrize("concurrency", [0, 2.5, "3", True, None])
async def test_a_concurrency_that_is_no_whole_number_is_refused(concurrency: Any) -> None:
    ets = ETS(ScriptedBackend(["a #### 1"]), "self_consistency", **SETTINGS)
    with pytest.raises(ConfigError, match=r"concurrency is .*; allowed: a whole number of at least 1"):
        await ets.complete_many(["q"], concurrency=concurrency)


@pytest.mark.parametrize("prompts", ["ab", None, 7, (each for each in "ab")])
async def test_prompts_that_are_no_list_are_refused(prompts: Any) -> None:
    ets = ETS(ScriptedBackend(["a #### 1"]), "self_consistency", **SETTINGS)
    with pytest.raises(ConfigError, match="prompts must be a list of prompts, not "):
        await ets.complete_many(prompts)
