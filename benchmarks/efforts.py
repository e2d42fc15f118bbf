"""What the efforts of guided reasoning give and cost, and what its confidence tells, on generated word problems.

    python benchmarks/efforts.py

For each effort: accuracy with its 95 % interval, tokens and seconds a problem, and how well the confidence tells right
answers from wrong ones: the area under the ROC curve, which is the probability that a right answer has the higher
confidence of two (0.5 is chance, 1 is perfect).
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from typing import get_args

import numpy as np

from ets_agent import ETSConfig, GuidedAnswer, GuidedReasoning
from ets_agent.evaluation.statistics import wilson_interval
from ets_agent.evaluation.word_problems import Problem, problems
from ets_agent.guided.request import Effort


def area_under_curve(scores: Sequence[float], right: Sequence[bool]) -> float:
    """Return the probability that the score of a right answer is above that of a wrong one, ties counting half."""
    values, truth = np.array(scores), np.array(right)
    above = values[truth][:, None] - values[~truth]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


async def answers(reasoning: GuidedReasoning, asked: Sequence[Problem], effort: Effort) -> list[GuidedAnswer]:
    """Ask all problems, some at a time: the time limit of a question runs while it waits."""
    places = asyncio.Semaphore(8)

    async def one(index: int, problem: Problem) -> GuidedAnswer:
        async with places:
            return await reasoning(problem.question, effort=effort, settings={"seed": index})

    return await asyncio.gather(*(one(index, problem) for index, problem in enumerate(asked)))


async def run(count: int, model: str) -> None:
    """Print a line for each effort."""
    asked = problems("test", count, seed=7)
    print(f"{count} word problems, {model}, self_consistency")
    print("effort  accuracy             tokens  seconds  confidence (right, wrong)  area under the curve")
    async with GuidedReasoning(model, config=ETSConfig(max_tokens=64)) as reasoning:
        for effort in get_args(Effort):
            found = await answers(reasoning, asked, effort)
            right = [answer.answer == str(problem.answer) for answer, problem in zip(found, asked, strict=True)]
            sure = [answer.confidence or 0.0 for answer in found]
            low, high = wilson_interval(sum(right), count)
            means = [np.mean([s for s, r in zip(sure, right, strict=True) if r is which]) for which in (True, False)]
            print(
                f"{effort:<7} {sum(right) / count:5.1%} ({low:.1%} to {high:.1%})"
                f"{np.mean([answer.usage.total_tokens for answer in found]):8.0f}"
                f"{np.mean([answer.usage.seconds for answer in found]):9.2f}"
                f"  {means[0]:10.2f}, {means[1]:.2f}{area_under_curve(sure, right):22.3f}"
            )


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--model", default="tiny/qwen3")
    arguments = parser.parse_args()
    if arguments.problems < 2:
        parser.error("--problems must be at least 2")
    asyncio.run(run(arguments.problems, arguments.model))


if __name__ == "__main__":
    main()
