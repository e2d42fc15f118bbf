"""Replicas in Ray actors on a cluster of two nodes: the contract, and what happens when a process is lost."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import backends
from backends import (
    Backend,
    BackendClosedError,
    BackendError,
    Capabilities,
    ContextLengthError,
    EndpointError,
    MissingExtraError,
    Prompt,
    PromptError,
    Retrying,
    RetryPolicy,
    SamplingParams,
    State,
    UnknownModelError,
)
from backends._ray_replica import Description, Failure, Origin, Parcel, Replica, StateError
from backends.local import LocalBackend
from ets_agent import ETS

from .conformance import CHECKS, Check, closing_twice_is_harmless
from .ray_cluster import (
    MODEL,
    PLAIN,
    QUESTION,
    Digits,
    actors,
    back_at_work,
    equals,
    guided,
    inside,
    rollouts_hang,
    rows_of,
    running_cluster,
    told,
    until,
    wait_until_gone,
)

ray = pytest.importorskip("ray", reason="ray is not installed")

from backends.ray import RayBackend  # noqa: E402 - after the skip
from backends.service import Service, service_of  # noqa: E402


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shared(cluster: Any) -> Iterator[RayBackend]:
    """Two replicas that many tests use."""
    backend = RayBackend.start(MODEL, replicas=2)  # One for each node.
    yield backend
    asyncio.run(backend.aclose())


@pytest.fixture
async def local() -> AsyncIterator[LocalBackend]:
    backend = backends.load(MODEL)
    assert isinstance(backend, LocalBackend)
    async with backend:
        yield backend


# The contract


@pytest.mark.parametrize("prompt", [QUESTION, [{"role": "user", "content": QUESTION}]], ids=["text", "chat"])
@pytest.mark.parametrize(
    "law", [law for law in CHECKS if law is not closing_twice_is_harmless], ids=lambda law: law.__name__
)
async def test_replicas_obey(law: Check, prompt: Prompt, shared: RayBackend) -> None:
    await law(shared, prompt)
    assert all(member.healthy for member in shared._roster.members)


async def test_a_run_is_the_same_as_with_a_local_model(shared: RayBackend, local: LocalBackend) -> None:
    assert (shared.name, shared.capabilities, shared.tokenization) == (
        local.name,
        local.capabilities,
        local.tokenization,
    )
    expected = [told(result) for result in await guided(local).complete_many([QUESTION] * 4, concurrency=1)]
    assert [told(result) for result in await guided(shared).complete_many([QUESTION] * 4, concurrency=4)] == expected


async def test_replicas_are_on_both_nodes_and_both_work(shared: RayBackend) -> None:
    nodes = {
        await inside(actor, lambda _: __import__("ray").get_runtime_context().get_node_id()) for actor in actors(shared)
    }
    assert len(nodes) == 2
    before = [member.turn for member in shared._roster.members]
    await guided(shared).complete_many([QUESTION] * 4, concurrency=4)
    assert all(member.turn > turn for member, turn in zip(shared._roster.members, before, strict=True))


def test_ray_is_who_serves_the_model(shared: RayBackend) -> None:
    assert service_of(shared) == Service(provider="ray", model=shared.name)


async def test_confidence_is_that_of_a_local_model(shared: RayBackend, local: LocalBackend) -> None:
    told_by = []
    for backend in (shared, local):
        start = await backend.begin(QUESTION, max_tokens=12, params=SamplingParams(confidence=True))
        (state,) = await backend.extend(start, 1, tokens=5, seed=0)
        ((completion,),) = await backend.rollout([state], 1, seed=1)
        assert state.confidence is not None
        assert completion.confidence is not None
        told_by.append((state.confidence, completion.confidence))
    for one, other in zip(*told_by, strict=True):
        assert one.num_tokens == other.num_tokens
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert one.entropy == pytest.approx(other.entropy, abs=1e-3)


async def test_errors_are_those_of_a_local_model(shared: RayBackend, local: LocalBackend) -> None:
    for backend in (shared, local):
        with pytest.raises(ContextLengthError, match=f"{MODEL} allows 1024 together"):
            await backend.begin(QUESTION, max_tokens=10_000, params=PLAIN)
        with pytest.raises(PromptError, match="half of a surrogate pair"):
            await backend.begin("\ud800", max_tokens=10, params=PLAIN)
    start = await local.begin(QUESTION, max_tokens=10, params=PLAIN)
    with pytest.raises(BackendError, match="of another backend"):
        await shared._roster.members[0].backend.rollout([start], 1, seed=0)
    assert all(member.healthy for member in shared._roster.members)


# Freeing and cancelling


async def test_states_that_nobody_has_any_more_are_freed_in_the_actor(shared: RayBackend) -> None:
    async def kept() -> int:
        # Not by a call of the backend: the actor is to be told without one.
        return sum([await inside(actor, lambda replica: len(replica._states)) for actor in actors(shared)])

    gc.collect()
    await until(lambda: equals(kept, 0))
    start = await shared.begin(QUESTION, max_tokens=20, params=PLAIN)
    drawn = await shared.extend(start, 7, tokens=3, seed=0)
    assert await kept() == 8
    del drawn[2:]
    gc.collect()
    await until(lambda: equals(kept, 3))
    await shared.rollout(drawn, 2, seed=0)
    del start, drawn
    gc.collect()
    await until(lambda: equals(kept, 0))
    await guided(shared).complete_many([QUESTION] * 3, concurrency=3)
    gc.collect()
    await until(lambda: equals(kept, 0))


async def test_cancelling_a_call_drops_its_rows_in_the_actor(shared: RayBackend) -> None:
    start = await shared.begin(QUESTION, max_tokens=400, params=SamplingParams(temperature=5.0))
    actor = start.place.member.backend._actor  # type: ignore[attr-defined]
    call = asyncio.create_task(shared.rollout([start], 10_000, seed=0))  # Minutes of work.
    await until(lambda: rows_of(actor))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: equals(lambda: rows_of(actor), 0))
    assert [(member.rows, member.healthy) for member in shared._roster.members] == [(0, True)] * 2
    assert await shared.rollout([start], 1, seed=0), "the actor goes on"


@pytest.mark.parametrize("connected", [True, False])
async def test_a_cancelled_call_is_cancelled_also_where_the_actor_cannot_be_told(
    connected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backends._ray_actor import ActorBackend

    asked = asyncio.Event()
    told: list[Any] = []

    class Call:
        def remote(self, *arguments: Any) -> asyncio.Future[Any]:
            asked.set()
            return asyncio.get_running_loop().create_future()

    def cancel(answer: Any) -> None:
        told.append(answer)
        raise ray.exceptions.RaySystemError("the actor is gone")

    monkeypatch.setattr(ray, "is_initialized", lambda: connected)
    monkeypatch.setattr(ray, "cancel", cancel)
    backend = ActorBackend(SimpleNamespace(call=Call()), Description("m", Capabilities(), None))
    call = asyncio.create_task(backend.begin("q", max_tokens=4, params=PLAIN))
    await asked.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert len(told) == connected, "to tell Ray without a connection would start a cluster"


async def test_a_run_that_times_out_leaves_nothing_in_the_actor(shared: RayBackend) -> None:
    ets = ETS(shared, Digits(), num_candidates=10_000, num_rollouts=1, block_size=200, max_tokens=400, temperature=5.0)
    result = await ets.complete(QUESTION, timeout=0.2)
    assert result.finish_reason == "timeout"
    for actor in actors(shared):
        await until(lambda actor=actor: equals(lambda: rows_of(actor), 0))  # type: ignore[misc]


async def test_the_event_loop_is_free_while_actors_work(shared: RayBackend) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    start = await shared.begin(QUESTION, max_tokens=100, params=PLAIN)
    before = ticks
    await shared.rollout([start], 20, seed=0)
    assert ticks > before + 20
    ticking.cancel()


# Losses


async def test_a_killed_actor_costs_nothing_and_comes_back(shared: RayBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = told(await guided(shared).complete(QUESTION))
    start = await shared.begin(QUESTION, max_tokens=300, params=SamplingParams(temperature=5.0))
    drawn = await shared.extend(start, 3, tokens=5, seed=0)
    home = start.place.member  # type: ignore[attr-defined]
    (other,) = [member for member in shared._roster.members if member is not home]
    before = await shared.rollout(drawn, 2, seed=1)
    pid = await inside(home.backend._actor, lambda _: os.getpid())
    await inside(home.backend._actor, rollouts_hang)
    call = asyncio.create_task(shared.rollout(drawn, 2, seed=1))
    await until(lambda: inside(home.backend._actor, lambda replica: replica.hanging))
    os.kill(pid, signal.SIGKILL)
    assert [[c.token_ids for c in group] for group in await call] == [[c.token_ids for c in group] for group in before]
    assert not home.healthy
    assert other.healthy
    assert told(await guided(shared).complete(QUESTION)) == expected

    await until(lambda: back_at_work(shared, home))
    assert told(await guided(shared).complete(QUESTION)) == expected
    assert await inside(home.backend._actor, lambda _: os.getpid()) != pid


async def test_the_loss_of_all_actors_at_once_is_waited_for(shared: RayBackend) -> None:
    """With the policy that the documentation gives for this."""
    patient = Retrying(shared, RetryPolicy(attempts=30, longest_delay=5, deadline=300))
    start = await patient.begin(QUESTION, max_tokens=30, params=PLAIN)
    drawn = await patient.extend(start, 2, tokens=5, seed=0)
    expected = await patient.rollout(drawn, 2, seed=1)
    pids = [await inside(actor, lambda _: os.getpid()) for actor in actors(shared)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    again = await patient.rollout(drawn, 2, seed=1)
    assert [[c.token_ids for c in group] for group in again] == [[c.token_ids for c in group] for group in expected]
    assert not any(member.failures > 1 for member in shared._roster.members), "to be started again is no failure"


async def test_a_state_that_an_actor_has_forgotten_is_made_again(shared: RayBackend) -> None:
    start = await shared.begin(QUESTION, max_tokens=30, params=SamplingParams(temperature=1.5, confidence=True))
    drawn = await shared.extend(start, 3, tokens=5, seed=0)
    expected = await shared.rollout(drawn, 2, seed=1)
    actor = start.place.member.backend._actor  # type: ignore[attr-defined]
    await inside(actor, lambda replica: replica._states.clear())
    again = await shared.rollout(drawn, 2, seed=1)
    for one, other in zip(again[0] + again[1] + again[2], expected[0] + expected[1] + expected[2], strict=True):
        assert (one.text, one.token_ids, one.finish_reason) == (other.text, other.token_ids, other.finish_reason)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert one.confidence is not None
        assert other.confidence is not None
        assert one.confidence.num_tokens == other.confidence.num_tokens
        assert one.confidence.entropy == pytest.approx(other.confidence.entropy, abs=1e-2)


# Starting


def test_a_model_that_is_not_there_is_said_so(cluster: Any) -> None:
    with pytest.raises(UnknownModelError, match="no model is called 'tiny/qwen'"):
        RayBackend.start("tiny/qwen", num_cpus=0)


def test_a_cluster_without_room_is_said_so(cluster: Any) -> None:
    with pytest.raises(
        BackendError, match=r"1 of 1 replicas were not ready after 0.5 s; .* 1 CPU, 3 GPU; .* 2 CPU .*, 0 GPU"
    ):
        RayBackend.start(MODEL, num_gpus=3, start_timeout=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"replicas": 0}, "replicas is 0; allowed"),
        ({"replicas": 1.5}, "replicas is 1.5; allowed"),
        ({"replicas": True}, "replicas is True; allowed"),
        ({"max_states": 0}, "max_states is 0; allowed"),
        ({"num_cpus": -1}, "num_cpus is -1; allowed"),
        ({"num_cpus": "1"}, "num_cpus is '1'; allowed"),
        ({"num_gpus": float("nan")}, "num_gpus is nan; allowed"),
        ({"start_timeout": 0}, "start_timeout is 0; allowed"),
        ({"start_timeout": "x"}, "start_timeout is 'x'; allowed"),
        ({"first_delay": 0}, "first_delay is 0; allowed"),
        ({"longest_delay": 1}, "longest_delay is 1; allowed"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_started(
    arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendError, match=message):
        RayBackend.start(MODEL, **arguments)


def test_options_that_ray_does_not_have_are_refused(cluster: Any) -> None:
    with pytest.raises(BackendError, match="no_such"):
        RayBackend.start(MODEL, actor_options={"no_such": 1})


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ets-agent\[ray\]'"):
        RayBackend.start(MODEL)


STARTED_HERE = """
import asyncio, os
import ray
from backends import SamplingParams
from backends.ray import RayBackend

async def main():
    one = RayBackend.start("tiny/qwen3-small", num_cpus=0.5)
    two = RayBackend.start("tiny/qwen3-small", num_cpus=0.5)
    await one.aclose()
    await one.aclose()
    state = await two.begin("2 + 2", max_tokens=4, params=SamplingParams())
    assert len(await two.rollout([state], 2, seed=0)) == 1
    await two.aclose()
    assert not ray.is_initialized()

asyncio.run(main())
"""


def test_ray_ends_with_the_last_backend_if_it_was_started_by_the_first() -> None:
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder, "OMP_NUM_THREADS": "1"}
    try:
        subprocess.run([sys.executable, "-W", "error", "-c", STARTED_HERE], check=True, env={**os.environ, **settings})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_importing_the_package_imports_no_ray() -> None:
    code = "import backends, backends.ray, sys; assert not {'ray', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# What a replica does, without Ray around it


@pytest.fixture
async def replica(local: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> Replica:
    monkeypatch.setattr("backends._ray_replica.load", lambda name, **options: local)
    replica = Replica(MODEL, {}, max_states=3)
    await replica.describe()
    return replica


ORIGIN = Origin.of(QUESTION, 20, PLAIN)


async def test_a_replica_keeps_the_states_that_were_used_last(replica: Replica) -> None:
    start = await replica.begin(0, ORIGIN)
    first, *_ = await replica.extend(Parcel(0, start, ORIGIN, None), [1, 2], 3, 0)
    assert list(replica._states) == [0, 1, 2]
    await replica.rollout([Parcel(1, first, ORIGIN, None), Parcel(0, start, ORIGIN, None)], 1, 0)
    await replica.begin(3, ORIGIN)
    assert await replica.kept() == 3
    assert 2 not in replica._states
    await replica.release([1, 2, 77])
    assert set(replica._states) == {0, 3}


async def test_an_adopted_state_goes_on_from_the_cache_of_its_parent(replica: Replica) -> None:
    start = await replica.begin(0, ORIGIN)
    (parent,) = await replica.extend(Parcel(0, start, ORIGIN, None), [1], 3, 0)
    (child,) = await replica.extend(Parcel(1, parent, ORIGIN, None), [2], 3, 0)
    await replica.rollout([Parcel(9, child, ORIGIN, 1)], 1, 0)
    assert replica._states[9].prefix.parent is None  # type: ignore[attr-defined] # It has been computed,
    known = replica._states[1]
    replica._states.clear()
    replica._states[1] = known
    adopted = await replica._known(replica._model(), [Parcel(8, child, ORIGIN, 1)])
    assert adopted[0].prefix.parent is known.prefix  # type: ignore[attr-defined]
    unknown = await replica._known(replica._model(), [Parcel(7, child, ORIGIN, 55)])
    assert unknown == adopted


async def test_a_state_that_the_model_cannot_have_is_the_requests_fault(replica: Replica) -> None:
    alien = State(text="?", num_tokens=1, token_ids=(10**9,))
    answer = await replica.call("rollout", [Parcel(0, alien, ORIGIN, None)], 1, 0)
    assert isinstance(answer, Failure)
    assert isinstance(answer.error, StateError)
    assert isinstance(answer.error, PromptError)


async def test_a_replica_that_is_loading_sends_calls_elsewhere(
    local: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends._ray_replica.load", lambda name, **options: local)
    replica = Replica(MODEL, {}, max_states=3)
    answer = await replica.call("begin", 0, ORIGIN)
    assert isinstance(answer, Failure)
    assert isinstance(answer.error, EndpointError)
    assert (answer.error.retryable, answer.error.retry_after) == (True, 1.0)
    await replica.describe()
    assert (await replica.call("begin", 0, ORIGIN)).text == ""


async def test_a_model_that_could_not_be_loaded_is_tried_again(
    local: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Any] = [UnknownModelError("no disk"), local]

    def load(name: str, **options: Any) -> Backend:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, LocalBackend)
        return found

    monkeypatch.setattr("backends._ray_replica.load", load)
    replica = Replica(MODEL, {}, max_states=3)
    answer = await replica.call("describe")
    assert isinstance(answer, Failure)
    assert isinstance(answer.error, UnknownModelError)
    assert (await replica.call("describe")).name == MODEL


# The last one: it closes what the others use


async def test_closing_ends_the_actors_and_leaves_a_cluster_alone_that_was_there(shared: RayBackend) -> None:
    pids = {await inside(actor, lambda _: os.getpid()) for actor in actors(shared)}
    await closing_twice_is_harmless(shared, QUESTION)
    with pytest.raises(BackendClosedError):
        await shared.begin(QUESTION, max_tokens=4, params=PLAIN)
    assert pids
    assert not wait_until_gone(pids)
    assert ray.is_initialized()
