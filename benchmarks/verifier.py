"""ETS against the best of N with a verifier that checks the working, on generated word problems.

    python benchmarks/verifier.py

The verifier reads the equations of a response, not the question: a response whose sums are right may still be the
wrong calculation. It comes in two forms: one tells how far the working is right, the other only whether all of it is.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Callable
from typing import Any

import backends
from backends import Completion
from ets_agent import ETSConfig
from ets_agent.evaluation import evaluate, word_problems

SEED = 11
"""Of the problems; settings were chosen on those of other seeds."""

_EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def part(completion: Completion) -> float:
    """Return the share of a response's lines that come before the first wrong one."""
    lines = completion.text.strip().splitlines() or [""]
    right, result = 0, None
    for line in lines:
        equation = _EQUATION.fullmatch(line)
        if equation is not None and _holds(*equation.groups()):
            result = equation[4]
        elif line != f"#### {result}":
            break
        right += 1
    return right / len(lines)


def whole(completion: Completion) -> float:
    """Return 1 if all lines of a response are right, else 0."""
    return float(part(completion) == 1)


def _holds(left: str, operation: str, right: str, result: str) -> bool:
    a, b, c = int(left), int(right), int(result)
    return {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": b > 0 and a == b * c}[operation]


async def run(count: int, model: str) -> None:
    """Print a line for each method and form of the verifier."""
    asked = word_problems.problems("test", count, seed=SEED)
    guided = ETSConfig(num_candidates=8, num_rollouts=1, block_size=12, kl_coef=0.02, max_tokens=64)
    methods: list[tuple[str, dict[str, Any]]] = [
        (f"best of {n}", {"method": "best_of_n", "n": n, "config": guided}) for n in (1, 8, 16, 32)
    ]
    methods.append(("ETS", {"method": "ets", "config": guided}))
    print(f"{count} word problems, {model}; ETS with M = 8, K = 1, blocks of 12 tokens, lambda = 0.02")
    print("verifier  method      accuracy                  tokens a problem")
    verifiers: dict[str, Callable[[Completion], float]] = {"part": part, "whole": whole}
    async with backends.load(model) as backend:
        for verifier, reward in verifiers.items():
            for method, options in methods:
                report = await evaluate(backend, asked, reward=reward, **options)
                low, high = report.interval.low, report.interval.high
                tokens = sum(item.tokens for item in report.items) / report.count
                print(
                    f"{verifier:<10}{method:<12}{report.accuracy:5.1%} ({low:.1%} to {high:.1%}){tokens:10.0f}",
                    flush=True,
                )


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--model", default="tiny/qwen3-small")
    arguments = parser.parse_args()
    if arguments.problems < 1:
        parser.error("--problems must be at least 1")
    asyncio.run(run(arguments.problems, arguments.model))


if __name__ == "__main__":
    main()
