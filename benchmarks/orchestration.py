"""What the library itself costs: many concurrent completions on a backend whose draws are free.

    python benchmarks/orchestration.py

All calls run at once in one event loop; the time per call is the wall time divided by their number, and includes the
scripted backend's own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time

from backends.scripted import ScriptedBackend
from ets_agent import ETS, Result

SCRIPT = {
    f"Add them.\n{a} + {b} = {a + b + slip}\nThat makes {a + b + slip}.\n#### {a + b + slip}": 4.0 if slip == 0 else 1.0
    for a, b in ((12, 30), (14, 28), (21, 21))
    for slip in (0, 1, -1, 10)
}


async def measure(calls: int, rounds: int) -> dict[str, float]:
    """Return milliseconds per call, of the best and of the median round."""
    ets = ETS(ScriptedBackend(SCRIPT), num_candidates=8, num_rollouts=4, block_size=4, max_tokens=16)
    elapsed: list[float] = []
    for round_ in range(rounds + 1):
        began = time.perf_counter()
        results = await ets.complete_many(["What is 12 + 30?"] * calls, concurrency=calls, seed=round_)
        if round_ > 0:  # The first round is the warm-up.
            elapsed.append(1000 * (time.perf_counter() - began) / calls)
        assert all(isinstance(result, Result) for result in results)
    elapsed.sort()
    steps = sum(len(result.steps) for result in results if isinstance(result, Result)) / calls
    return {
        "calls": calls,
        "steps_per_call": steps,
        "best_ms_per_call": elapsed[0],
        "median_ms_per_call": elapsed[len(elapsed) // 2],
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.calls < 1 or arguments.rounds < 1:
        parser.error("--calls and --rounds must be at least 1")
    figures = asyncio.run(measure(arguments.calls, arguments.rounds))
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{arguments.calls} concurrent completions, M = 8, K = 4, {figures['steps_per_call']:.1f} steps each")
    print(f"{figures['median_ms_per_call']:.2f} ms each (median round), {figures['best_ms_per_call']:.2f} ms (best)")


if __name__ == "__main__":
    main()
