"""ETS against the best of N with a verifier that checks the working, on generated word problems.

    python benchmarks/verifier.py

The verifier reads the equations of a response, not the question: a response whose sums are right may still be the
wrong calculation. It comes in two forms: one tells how far the working is right, the other only whether all of it is.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # The verifier's equations are an example's, and not installed.

import backends
from backends import Completion
from ets_agent import ETSConfig
from ets_agent.evaluation import evaluate, word_problems
from examples.custom_reward import EQUATION, is_right

SEED = 11
"""Of the problems; settings were chosen on those of seed 7."""
KL_COEF = 0.02

METHODS: dict[str, dict[str, Any]] = {
    **{f"best of {n}": {"method": "best_of_n", "n": n} for n in (1, 8, 16, 32)},
    "ETS": {"method": "ets"},
}


def part(completion: Completion) -> float:
    """Return the share of a response's lines that come before the first wrong one."""
    lines = completion.text.strip().splitlines() or [""]
    right, result = 0, None
    for line in lines:
        equation = EQUATION.fullmatch(line)
        if equation is not None and is_right(equation.groups()):
            result = equation[4]
        elif line != f"#### {result}":
            break
        right += 1
    return right / len(lines)


def whole(completion: Completion) -> float:
    """Return 1 if all lines of a response are right, else 0."""
    return float(part(completion) == 1)


async def run(count: int, model: str, seed: int, kl_coef: float) -> None:
    """Print a line for each method and form of the verifier."""
    asked = word_problems.problems("test", count, seed=seed)
    config = ETSConfig(num_candidates=8, num_rollouts=1, block_size=12, kl_coef=kl_coef, max_tokens=64)
    print(f"{count} word problems, {model}; ETS with M = 8, K = 1, blocks of 12 tokens, lambda = {kl_coef:g}")
    print("verifier  method      accuracy                  tokens a problem")
    async with backends.load(model) as backend:
        for verifier in (part, whole):
            for method, options in METHODS.items():
                report = await evaluate(backend, asked, config=config, reward=verifier, **options)
                low, high = report.interval.low, report.interval.high
                print(
                    f"{verifier.__name__:<10}{method:<12}{report.accuracy:5.1%} ({low:.1%} to {high:.1%})"
                    f"{report.tokens_per_problem:10.0f}",
                    flush=True,
                )


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--model", default="tiny/qwen3-small")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--kl-coef", type=float, default=KL_COEF)
    arguments = parser.parse_args()
    if arguments.problems < 1:
        parser.error("--problems must be at least 1")
    asyncio.run(run(arguments.problems, arguments.model, arguments.seed, arguments.kl_coef))


if __name__ == "__main__":
    main()
