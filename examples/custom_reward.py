"""Write a reward, combine it with others, and swap rewards per task, on the embedded model.

The reward here is a verifier: it reads the working of an arithmetic problem and checks every equation in it. It needs
no key, so unlike ``math_answer`` it may guide a real question.

    pip install -e ".[local]"
    python examples/custom_reward.py
"""

from __future__ import annotations

import asyncio
import re

import rewards
from backends import Completion
from ets_agent import ETS

QUESTION = (
    "Mia has 6 boxes with 45 shells in each. Mia gives 95 to Leo. Mia shares them equally among 7 people, Mia "
    "included. Mia finds 130 more. How many shells does Mia have now?"
)
EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


@rewards.register("arithmetic")
def arithmetic(completion: Completion, *, empty: float = 0.0) -> float:
    """Reward the share of right equations in the working.

    A keyword-only parameter is an argument of the specification: ``arithmetic:empty=0.5`` is the reward of a response
    without any equation.
    """
    equations = EQUATION.findall(completion.text)
    return sum(map(is_right, equations)) / len(equations) if equations else empty


def is_right(equation: tuple[str, str, str, str]) -> bool:
    """Return whether "a + b = c" or the like is so."""
    left, right, result = int(equation[0]), int(equation[2]), int(equation[3])
    return {
        "+": left + right == result,
        "-": left - right == result,
        "*": left * right == result,
        "/": right != 0 and left == right * result,
    }[equation[1]]


REWARDS = {
    "a vote": "self_consistency",
    "the verifier": "arithmetic",
    "the verifier, in a form that a config file can hold": {"name": "arithmetic", "empty": 0.5},
    "both": {"name": "weighted_sum", "rewards": ["self_consistency", "arithmetic"], "weights": [0.5, 0.5]},
    "a vote among responses that end as they should": {
        "name": "gate",
        "condition": {"name": "regex", "pattern": r"#### \d+\Z"},
        "reward": "self_consistency",
    },
}


async def main() -> None:
    """Answer one question under each of the rewards, in one process, with one model."""
    async with ETS("tiny/qwen3", num_candidates=8, num_rollouts=4, block_size=16, max_tokens=64, seed=0) as ets:
        for title, reward in REWARDS.items():
            result = await ets.complete([{"role": "user", "content": QUESTION}], reward=reward)
            print(f"{title}: {result.text.splitlines()[-1]}, reward {result.reward:.2f}")


if __name__ == "__main__":
    asyncio.run(main())
