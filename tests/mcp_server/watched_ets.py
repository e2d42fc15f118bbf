"""The real command line over a scripted model that says on stderr how many of its calls are under way.

``python -m tests.mcp_server.watched_ets mcp --model scripted/SECONDS``: each call of the model takes so long; less
than none, and it fails. It is loaded once the file ``ETS_TEST_GATE`` exists, where that is set; ``scripted/broken``
cannot be.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import backends
from backends import Backend, BackendError, Completion, EndpointError, State
from backends.scripted import ScriptedBackend
from ets_agent.cli import main

RESPONSES = {
    "12 + 4 = 16\n16 * 2 = 32\n#### 32": 3.0,
    "12 + 4 = 18\n#### 18": 1.0,
    "12 - 4 = 8\n#### 8": 1.0,
}


class Watched(ScriptedBackend):
    """Says after each change how many calls are under way, and that it was closed."""

    _told_active = 0
    fails = False

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        if self.fails:
            raise EndpointError("POST http://10.1.2.3/v1: connection refused")
        with self._told():
            return await super().extend(state, n, tokens=tokens, seed=seed)

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        with self._told():
            return await super().rollout(states, n, seed=seed)

    async def aclose(self) -> None:
        _tell("closed")
        await super().aclose()

    @contextmanager
    def _told(self) -> Iterator[None]:
        self._told_active += 1
        _tell(f"active {self._told_active}")
        try:
            yield
        finally:
            self._told_active -= 1
            _tell(f"active {self._told_active}")


def _tell(what: str) -> None:
    print(f"model: {what}", file=sys.stderr, flush=True)


def run() -> NoReturn:
    def load(name: str, **options: Any) -> Backend:
        print("noise that a library makes on stdout")
        _tell("loading")
        if (gate := os.environ.get("ETS_TEST_GATE")) is not None:
            while not Path(gate).exists():
                time.sleep(0.01)
        if name == "scripted/broken":
            raise BackendError("there is no such model")
        seconds = float(name.removeprefix("scripted/"))
        model = Watched(RESPONSES, delay=max(0.0, seconds))
        model.fails = seconds < 0
        return model

    backends.load = load
    main()
    raise AssertionError("main ends by SystemExit")


if __name__ == "__main__":
    run()
