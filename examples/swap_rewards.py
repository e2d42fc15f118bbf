"""One tool, three tasks, three rewards: what is asked says how its answers are judged, within what the operator offers.

The operator here offers a vote, a verifier of its own, and tests in a sandbox; nothing else can be asked for.

    pip install -e ".[local]"
    python examples/swap_rewards.py
"""

from __future__ import annotations

import asyncio
import re

from backends import Completion
from ets_agent import ETSConfig, GuidedReasoning, Policy, RequestError, RewardOffer
from rewards import SandboxUnavailableError
from rewards.sandbox import select

EQUATION = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")


def equations(completion: Completion) -> float:
    """Return the share of right equations in the working."""
    found = EQUATION.findall(completion.text)
    right = [
        {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(c) for a, sign, b, c in found
    ]
    return sum(right) / len(right) if right else 0.0


POLICY = Policy(
    rewards=[
        "self_consistency",
        RewardOffer(name="equations", reward=equations, description="The share of right equations in the working."),
        "code_tests",  # Runs what the model writes: only because the operator says so, and only in the sandbox.
    ],
    max_seconds=30,
)

TASKS = {
    "a vote": {
        "question": "Iris has 4 packs with 95 eggs in each. Iris loses 213 of them. How many eggs does Iris have now?",
        "reward": "self_consistency",
    },
    "a verifier of the operator's": {
        "question": "Mia has 6 boxes with 45 shells in each. Mia gives 95 to Leo. How many shells does Mia have now?",
        "reward": "equations",
    },
    # The embedded model writes no programs. But its working begins with an expression, which Python understands, too.
    "tests in a sandbox": {
        "question": "Ben has 7 bags with 12 coins in each. Ben finds 9 more. How many coins does Ben have now?",
        "reward": {
            "name": "code_tests",
            "prompt": "def coins():\n    return ",
            "entry_point": "coins",
            "test": "assert coins() == 84",
        },
        "settings": {"stop": " =", "num_steps": 1},
    },
    "what is not on offer": {"question": "What is 1 + 1?", "reward": {"name": "llm_judge", "rubric": "It is true."}},
}


async def main() -> None:
    """Ask all of it of one tool."""
    try:
        select()
    except SandboxUnavailableError as error:
        print(f"no tests in a sandbox here: {error}")
        del TASKS["tests in a sandbox"]
    async with GuidedReasoning("tiny/qwen3", policy=POLICY, config=ETSConfig(max_tokens=64, seed=0)) as reasoning:
        for title, task in TASKS.items():
            try:
                answer = await reasoning(task)
            except RequestError as error:
                print(f"{title}: {error}")
            else:
                said = answer.answer or answer.text.splitlines()[-1]
                print(f"{title}: {said}, reward {answer.reward:.2f}, confidence {answer.confidence:.2f}")


if __name__ == "__main__":
    asyncio.run(main())
