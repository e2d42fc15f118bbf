"""Guided completions over servers that fail: all end, in time, as the retry policy says, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import pytest

from backends import Backend, EndpointError
from backends.openai import OpenAIBackend
from backends.pool import Pool
from backends.retries import RetryPolicy
from ets_agent import ETS, Result
from tests.fake_server import KINDS, FakeProcess, FakeServer, FaultPlan, Records, ScriptedModel
from tests.hurry import hurried
from tests.virtual_time import pass_time

SCRIPT = {
    "3 + 4 = 7 so there are 7 apples in the basket now #### 7": 6.0,
    "3 + 4 = 8 so there are 8 apples in the basket now #### 8": 2.0,
    "There are 3 apples and 4 more , which makes 7 apples in all #### 7": 3.0,
    "There are 3 apples and 4 more , which makes 12 apples in all #### 12": 1.0,
}
QUESTION = "What is 3 + 4?"
POLICY = RetryPolicy(attempts=4, first_delay=0.02, longest_delay=0.1, deadline=60.0)
SETTINGS: dict[str, Any] = {"num_candidates": 6, "num_rollouts": 3, "num_steps": 4, "max_tokens": 24}


def hanging(records: Records) -> int:
    """Requests that hang; others may be under way for a moment."""
    return sum(record.fault == "hang" and record.ended is None for record in records.all())


def open_sockets() -> int:
    """Connections of this process's own event loops; the server's are uvloop's."""
    gc.collect()
    # By type: `isinstance` asks the object, and some objects of other libraries warn when they are asked anything.
    found = [thing for thing in gc.get_objects() if issubclass(type(thing), asyncio.Transport)]
    return sum(not transport.is_closing() for transport in found)


async def test_a_fifth_of_all_requests_fail_in_every_way(caplog: pytest.LogCaptureFixture) -> None:
    count, timeout = 200, 2.0
    policy = replace(POLICY, deadline=600.0)
    caplog.set_level(logging.INFO, logger="backends.retries")
    with FakeServer(ScriptedModel(SCRIPT)) as server:
        before = asyncio.all_tasks()
        backend = await OpenAIBackend.connect("scripted", server.base_url, retries=policy, timeout=timeout)
        ets = ETS(backend, "self_consistency", **SETTINGS)
        connected = server.records.total
        server.faults = FaultPlan.random(0.2, seed=1, delay=0.05)
        results = await ets.complete_many([QUESTION] * count, concurrency=100, seed=2)
        assert asyncio.all_tasks() == before, "no task is left"
        await backend.aclose()
        await asyncio.to_thread(server.wait_idle)
        records = server.records.all()[connected:]
    # Why the client sent each request again; the server knows only what it had to answer.
    reasons: dict[str, list[str]] = defaultdict(list)
    for entry in caplog.records:
        what, _, reason = entry.getMessage().partition("] failed: ")
        reasons[what.rpartition("[")[2]].append(reason)

    # All complete, or end in an error that names the request.
    failures = [result for result in results if not isinstance(result, Result)]
    for failure in failures:
        assert isinstance(failure, EndpointError)
        assert not failure.retryable
        named = re.search(r"/v1/completions \[(ets-[0-9a-f]{16})-(\d)\]: .* \(gave up after 4 tries", str(failure))
        assert named is not None, failure
        assert (int(named[2]), len(reasons[named[1]])) == (policy.attempts, policy.attempts - 1)
    complete = [result for result in results if isinstance(result, Result)]
    assert len(complete) > 0.8 * count
    assert {result.answer for result in complete} <= {"7", "8", "12", None}
    dropped = sum(trace.finish_reason == "error" for result in complete for step in result.steps
                  for group in step.rollouts for trace in group)  # fmt: skip

    # The number of requests is what the policy allows: every try but the last one of a request failed.
    harmless = (None, "slow")
    tries: dict[str, list[Any]] = defaultdict(list)
    for record in records:
        tries[record.headers["x-request-id"].rpartition("-")[0]].append(record)
    lost = False
    for number, made in tries.items():
        why = reasons[number]
        attempts = [int(record.headers["x-request-id"].rpartition("-")[2]) for record in made]
        # On a machine that is busy elsewhere, a client may have left before the server had read its request.
        assert attempts == sorted(set(attempts)), number
        assert set(attempts) <= set(range(1, len(why) + 2)), number
        assert len(why) < policy.attempts, number
        for attempt, record in zip(attempts, made, strict=True):
            if attempt <= len(why) and record.fault in harmless:
                assert f"no answer within {timeout:g} s" in why[attempt - 1], "once it came, no other try"
        failed = attempts[-1] == len(why) + 1 and made[-1].fault not in harmless
        assert not failed or len(why) == policy.attempts - 1, "what failed is asked again"
        lost = lost or failed
        assert len({str(record.body) for record in made}) == 1, "each try asks the same"
    assert failures or dropped or not lost, "what failed for good is on a trace, or ended its run"
    given = Counter(record.fault for record in records if record.fault is not None)
    assert set(given) == set(KINDS), "every kind of fault was met"
    assert sum(given.values()) == pytest.approx(0.2 * sum(r.path == "/v1/completions" for r in records), rel=0.2)


async def test_no_connection_is_left_after_faults() -> None:
    before = open_sockets()
    with FakeServer(ScriptedModel(SCRIPT)) as server:
        async with await OpenAIBackend.connect("scripted", server.base_url, retries=POLICY) as backend:
            ets = ETS(backend, "self_consistency", **SETTINGS)
            server.faults = FaultPlan.random(0.5, seed=3, delay=0.05)
            with hurried(backend, 0.25):
                await ets.complete_many([QUESTION] * 20, concurrency=20, seed=4)
            server.faults = None
            await ets.complete(QUESTION, seed=4)
            assert open_sockets() > before
        assert open_sockets() == before
        await asyncio.to_thread(server.wait_idle)


async def test_a_timeout_of_the_run_holds_although_the_server_hangs() -> None:
    patient = replace(POLICY, deadline=None)
    with FakeServer(ScriptedModel(SCRIPT)) as server:
        async with await OpenAIBackend.connect("scripted", server.base_url, retries=patient, timeout=1e6) as backend:
            server.faults = FaultPlan.when(lambda asked: asked.generation and asked.body["max_tokens"] > 6, "hang")
            ets = ETS(backend, "self_consistency", **SETTINGS)
            runs = [asyncio.create_task(ets.complete(QUESTION, seed=seed, timeout=3600)) for seed in range(8)]
            await asyncio.to_thread(server.records.wait, lambda records: hanging(records) >= 16)
            pass_time(3600)
            results = await asyncio.gather(*runs)
            assert {result.finish_reason for result in results} == {"timeout"}
            await asyncio.to_thread(server.wait_idle)
            assert server.records.aborted >= 16


async def test_a_cancelled_run_ends_its_requests_on_the_server() -> None:
    patient = replace(POLICY, deadline=None)
    with FakeServer(ScriptedModel(SCRIPT)) as server:
        async with await OpenAIBackend.connect("scripted", server.base_url, retries=patient, timeout=1e6) as backend:
            ets = ETS(backend, "self_consistency", **SETTINGS)
            server.faults = FaultPlan.when(lambda asked: asked.generation and asked.body["max_tokens"] > 6, "hang")
            before = asyncio.all_tasks()
            runs = [asyncio.create_task(ets.complete(QUESTION, seed=seed)) for seed in range(5)]
            await asyncio.to_thread(server.records.wait, lambda records: hanging(records) >= 10)
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
