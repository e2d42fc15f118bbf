"""The real command line over a model whose second step never ends: ``python -m tests.traces.stuck_ets ARGUMENTS…``."""

from __future__ import annotations

import asyncio
import sys

from backends import State
from backends.scripted import ScriptedBackend
from tests.cli import fake_ets


class StuckBackend(ScriptedBackend):
    """Says on stderr that it has got to the second step, and stays there."""

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        if state.text:
            print("stuck", file=sys.stderr, flush=True)
            await asyncio.Event().wait()
        return await super().extend(state, n, tokens=tokens, seed=seed)


if __name__ == "__main__":
    fake_ets.KINDS["stuck"] = StuckBackend
    sys.argv.insert(1, "stuck")
    fake_ets.run()
