"""A client that hangs up ends its run, whatever the run was doing."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from backends.scripted import ScriptedBackend
from tests.server.models import Gated
from tests.server.served import CHAT, SCRIPT, TEXT, Served, wait_until


@pytest.fixture
def slow() -> Iterator[tuple[Served, ScriptedBackend]]:
    """A server over a model that takes longer than any test waits."""
    backend = ScriptedBackend(SCRIPT, delay=600)
    with Served(backend) as served:
        yield served, backend


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_hangs_up_ends_its_run(slow: tuple[Served, ScriptedBackend], stream: bool, reset: bool) -> None:
    served, backend = slow
    with served.asked({**CHAT, "stream": stream}) as connection:
        wait_until(lambda: backend.active > 0)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: backend.active == 0)
    wait_until(lambda: served.reasoning.places.active == 0)


def test_all_choices_end(slow: tuple[Served, ScriptedBackend]) -> None:
    served, backend = slow
    with served.asked({**TEXT, "prompt": ["a", "b"], "n": 2}, "/v1/completions"):
        wait_until(lambda: served.reasoning.places.active == 4)
    wait_until(lambda: backend.active == 0)


def test_a_client_that_hangs_up_in_the_queue_leaves_it() -> None:
    backend = Gated()
    with Served(backend, max_concurrency=1) as served, served.asked(CHAT):
        wait_until(lambda: backend.waiting == 1)
        with served.asked(CHAT):
            wait_until(lambda: served.reasoning.places.waiting == 1)
        wait_until(lambda: served.reasoning.places.waiting == 0)
        assert backend.waiting == 1, "the other client's run goes on"


def test_others_go_on(slow: tuple[Served, ScriptedBackend]) -> None:
    served, _ = slow
    with served.asked(CHAT):
        wait_until(lambda: served.reasoning.places.active == 1)
        with served.asked(CHAT):
            wait_until(lambda: served.reasoning.places.active == 2)
        wait_until(lambda: served.reasoning.places.active == 1)
    wait_until(lambda: served.reasoning.places.active == 0)
