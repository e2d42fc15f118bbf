"""Guided completions over servers that fail: all end, in time, as the retry policy says, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from backends import Backend, EndpointError
from backends.openai import OpenAIBackend
from backends.pool import Pool
from backends.retries import RetryPolicy
from ets_agent import ETS, Result
from tests.fake_server import KINDS, FakeProcess, FakeServer, FaultPlan, ScriptedModel

SCRIPT = {
    "3 + 4 = 7 so there are 7 apples in the basket now #### 7": 6.0,
    "3 + 4 = 8 so there are 8 apples in the basket now #### 8": 2.0,
    "There are 3 apples and 4 more , which makes 7 apples in all #### 7": 3.0,
    "There are 3 apples and 4 more , which makes 12 apples in all #### 12": 1.0,
}
QUESTION = "What is 3 + 4?"
DEADLINE = 6.0
POLICY = RetryPolicy(attempts=4, first_delay=0.02, longest_delay=0.1, deadline=DEADLINE)
SETTINGS: dict[str, Any] = {"num_candidates": 6, "num_rollouts": 3, "num_steps": 4, "max_tokens": 24}


def open_sockets() -> int:
    """Connections of this process's own event loops; the server's are uvloop's."""
    gc.collect()
    # By type: `isinstance` asks the object, and some objects of other libraries warn when they are asked anything.
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), asyncio.Transport)]
    return sum(not transport.is_closing() for transport in found)


async def test_a_fifth_of_all_requests_fail_in_every_way() -> None:
    count, timeout = 500, 1.0
    with FakeServer(ScriptedModel(SCRIPT)) as server:
        before = asyncio.all_tasks()
        backend = await OpenAIBackend.connect("scripted", server.base_url, retries=POLICY, timeout=timeout)
        ets = ETS(backend, "self_consistency", **SETTINGS)
        connected = server.records.total
        server.faults = FaultPlan.random(0.2, seed=1, delay=0.05)
        began = time.monotonic()
        results = await ets.complete_many([QUESTION] * count, concurrency=100, seed=2)
        elapsed = time.monotonic() - began
        assert asyncio.all_tasks() == before, "no task is left"
        await backend.aclose()
        await asyncio.to_thread(server.wait_idle)
        records = server.records.all()[connected:]

    # All complete, or end in an error that names the request.
    failures = [result for result in results if not isinstance(result, Result)]
    for failure in failures:
        assert isinstance(failure, EndpointError)
        assert "/v1/completions [ets-" in str(failure)
        assert not failure.retryable
    complete = [result for result in results if isinstance(result, Result)]
    assert len(complete) > 0.8 * count
    assert {result.answer for result in complete} <= {"7", "8", "12", None}
    dropped = sum(trace.finish_reason == "error" for result in complete for step in result.steps
                  for group in step.rollouts for trace in group)  # fmt: skip

    harmless = (None, "slow")
    # The number of requests is what the policy allows: every try but the last one of a request failed.
    tries: dict[str, list[Any]] = {}
    for record in records:
        tries.setdefault(record.headers["x-request-id"].rpartition("-")[0], []).append(record)
    for number, made in tries.items():
        # On a machine that is busy elsewhere, a client may have left before the server had read its request.
        attempts = [int(record.headers["x-request-id"].rpartition("-")[2]) for record in made]
        assert attempts == sorted(set(attempts)), number
        assert set(attempts) <= set(range(1, POLICY.attempts + 1)), number
        # On a machine that is busy elsewhere, an answer without a fault may come after the client has left.
        for record, following in pairwise(made):
            late = record.aborted or following.began - record.began > 0.9 * timeout
            assert record.fault not in harmless or late, "once it came, no other try"
        assert made[-1].fault in harmless or attempts[-1] == POLICY.attempts, "what failed is asked again"
        assert len({str(record.body) for record in made}) == 1, "each try asks the same"
        assert made[-1].began - made[0].began < DEADLINE, "the deadline is one for all tries"
    given = Counter(record.fault for record in records if record.fault is not None)
    assert set(given) == set(KINDS), "every kind of fault was met"
    assert sum(given.values()) == pytest.approx(0.2 * sum(r.path == "/v1/completions" for r in records), rel=0.2)
    lost = [made for made in tries.values() if made[-1].fault not in harmless]
    expected = len(tries) * 0.2**POLICY.attempts
    assert len(lost) < expected + 5 * math.sqrt(expected) + 5
    assert bool(lost) == bool(failures or dropped), "what failed for good is on a trace, or ended its run"
    assert elapsed < 120


async def test_no_connection_is_left_after_faults() -> None:
    before = open_sockets()
    with FakeServer(ScriptedModel(SCRIPT)) as server:
        async with await OpenAIBackend.connect("scripted", server.base_url, retries=POLICY, timeout=0.25) as backend:
            server.faults = FaultPlan.random(0.5, seed=3, delay=0.05)
            ets = ETS(backend, "self_consistency", **SETTINGS)
            await ets.complete_many([QUESTION] * 20, concurrency=20, seed=4)
            assert open_sockets() > before
        assert open_sockets() == before
        await asyncio.to_thread(server.wait_idle)


async def test_a_timeout_of_the_run_holds_although_the_server_hangs() -> None:
    with FakeServer(ScriptedModel(SCRIPT)) as server:
        async with await OpenAIBackend.connect("scripted", server.base_url, retries=POLICY) as backend:
            server.faults = FaultPlan.when(lambda asked: asked.generation and asked.body["max_tokens"] > 6, "hang")
            ets = ETS(backend, "self_consistency", **SETTINGS)
            began = time.monotonic()
            results = await asyncio.gather(*(ets.complete(QUESTION, seed=seed, timeout=0.5) for seed in range(8)))
            assert time.monotonic() - began < 1.5
            assert {result.finish_reason for result in results} == {"timeout"}
            await asyncio.to_thread(server.wait_idle)
            assert server.records.aborted > 0


async def test_a_cancelled_run_ends_its_requests_on_the_server() -> None:
    with FakeServer(ScriptedModel(SCRIPT)) as server:
        async with await OpenAIBackend.connect("scripted", server.base_url, retries=POLICY) as backend:
            ets = ETS(backend, "self_consistency", **SETTINGS)
            server.faults = FaultPlan.when(lambda asked: asked.generation and asked.body["max_tokens"] > 6, "hang")
            before = asyncio.all_tasks()
            runs = [asyncio.create_task(ets.complete(QUESTION, seed=seed)) for seed in range(5)]
            await asyncio.to_thread(server.records.wait, lambda records: records.active >= 10)
            for run in runs:
                run.cancel()
            assert all(isinstance(outcome, asyncio.CancelledError)
                       for outcome in await asyncio.gather(*runs, return_exceptions=True))  # fmt: skip
            await asyncio.to_thread(server.wait_idle)
            assert server.records.aborted >= 10
            assert asyncio.all_tasks() == before


@pytest.mark.parametrize("moment", [5, 80, 250])
async def test_killing_one_of_two_servers_loses_no_run(moment: int) -> None:
    quick = RetryPolicy(attempts=2, first_delay=0.01, longest_delay=0.02, deadline=60.0)
    count = 40
    with FakeProcess(responses=SCRIPT) as one, FakeProcess(responses=SCRIPT) as other:
        members: list[Backend] = [
            await OpenAIBackend.connect("scripted", server.base_url, retries=quick) for server in (one, other)
        ]
        async with Pool(members) as pool:
            ets = ETS(pool, "self_consistency", **SETTINGS)
            undisturbed = await ets.complete_many([QUESTION] * count, concurrency=count, seed=5)
            # Some 310 requests; how many of them go to which server depends on which of them answers sooner.
            before = one.stats()["total"] + other.stats()["total"]
            runs = asyncio.create_task(ets.complete_many([QUESTION] * count, concurrency=count, seed=5))
            await asyncio.to_thread(one.wait, lambda stats: stats["total"] + other.stats()["total"] >= before + moment)
            one.kill()
            results = await runs
    assert all(isinstance(result, Result) for result in results), results
    texts = [[result.text for result in group if isinstance(result, Result)] for group in (undisturbed, results)]
    assert texts[0] == texts[1], "another server goes on from the same tokens with the same seeds"
    assert not any(trace.finish_reason == "error" for result in results if isinstance(result, Result)
                   for step in result.steps for group in step.rollouts for trace in group)  # fmt: skip
