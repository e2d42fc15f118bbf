"""The real command line over a fake model: ``python -m tests.cli.fake_ets KIND ARGUMENTS…``, for tests of processes."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

import backends
from backends import Backend, Completion, State
from backends.scripted import ScriptedBackend
from ets_agent.cli import main

RESPONSES = {
    "12 + 4 = 16\n16 * 2 = 32\n#### 32": 3.0,
    "12 + 4 = 18\n#### 18": 1.0,
    "12 - 4 = 8\n#### 8": 1.0,
}


class HangingBackend(ScriptedBackend):
    """Waits forever in the event loop, and says on stderr that it was closed."""

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        await asyncio.Event().wait()
        raise AssertionError

    async def aclose(self) -> None:
        print("backend closed", file=sys.stderr)


class DecodingBackend(ScriptedBackend):
    """Is in a thread that nothing can stop, as one deep in a model's forward pass; not even closing gets through."""

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        await asyncio.to_thread(threading.Event().wait)
        raise AssertionError

    async def aclose(self) -> None:
        await asyncio.to_thread(threading.Event().wait)


class BuggyBackend(ScriptedBackend):
    """Has a bug."""

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        raise KeyError("a bug\nof two lines")


KINDS: dict[str, type[ScriptedBackend]] = {
    "scripted": ScriptedBackend,
    "hanging": HangingBackend,
    "decoding": DecodingBackend,
    "buggy": BuggyBackend,
}


def load(kind: str) -> Backend:
    if kind == "loading":
        threading.Event().wait()
    return KINDS[kind](RESPONSES)


def run() -> NoReturn:
    kind = sys.argv.pop(1)

    def fake_load(name: str, **options: Any) -> Backend:
        return load(kind)

    backends.load = fake_load
    main()
    raise AssertionError("main ends by SystemExit")


if __name__ == "__main__":
    run()
