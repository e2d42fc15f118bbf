"""The loss of a whole node of a Ray cluster, in a cluster of its own that soon takes a silent node for lost."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from backends.ray import RayBackend

from .ray_cluster import (
    MODEL,
    QUESTION,
    actors,
    back_at_work,
    guided,
    inside,
    rollouts_hang,
    running_cluster,
    told,
    until,
)

pytest.importorskip("ray", reason="ray is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    # A node whose process is gone refuses to be asked, which is known at once; one that is only busy is waited for.
    with running_cluster(
        health_check_period_ms=500, health_check_failure_threshold=4, health_check_timeout_ms=30_000
    ) as cluster:
        yield cluster


@pytest.fixture
def shared(cluster: Any) -> Iterator[RayBackend]:
    """A replica on each node."""
    backend = RayBackend.start(MODEL, replicas=2)
    yield backend
    asyncio.run(backend.aclose())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool for which hours pass between any two looks at the clock: whoever is out is tried with the next run."""
    hours = itertools.count(step=3600)
    monkeypatch.setattr("backends._pool_members.monotonic", lambda: next(hours))


async def test_the_loss_of_a_node_in_mid_run_costs_nothing(
    cluster: Any, shared: RayBackend, caplog: pytest.LogCaptureFixture, impatient: None
) -> None:
    questions = [f"Mia has {n} boxes with 12 eggs in each. Mia loses 3 of them. How many eggs?" for n in range(20, 26)]
    expected = [told(result) for result in await guided(shared).complete_many(questions, concurrency=1)]
    single = told(await guided(shared).complete(QUESTION))
    (node,) = cluster.worker_nodes
    places = [
        await inside(actor, lambda _: __import__("ray").get_runtime_context().get_node_id()) for actor in actors(shared)
    ]
    lost = shared._roster.members[places.index(node.node_id)]
    await inside(lost.backend._actor, rollouts_hang)
    under_way = asyncio.create_task(guided(shared).complete_many(questions, concurrency=6))
    await until(lambda: inside(lost.backend._actor, lambda replica: replica.hanging))
    await asyncio.to_thread(cluster.remove_node, node, allow_graceful=False)
    assert [told(result) for result in await under_way] == expected
    assert not lost.healthy
    assert "leaves the pool" in caplog.text

    cluster.add_node(num_cpus=1)  # Ray starts the actor on it.

    await until(lambda: back_at_work(shared, lost))
    assert told(await guided(shared).complete(QUESTION)) == single
