"""Generated arithmetic word problems: two to four steps, each with a worked solution.

The stories are templates over a chain of integer operations. Training and test problems are disjoint by
construction: a problem's split is a hash of its arithmetic (numbers and operations, in order), so the same
calculation can never be told in both splits, whatever the names and objects in it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "test"]

MIN_STEPS = 2
MAX_STEPS = 4
MAX_VALUE = 999

_TEST_BUCKETS = 10
"""One arithmetic chain in this many belongs to the test split."""

_NAMES = (
    "Ada", "Ben", "Chloe", "Dan", "Emma", "Finn", "Grace", "Hugo", "Iris", "Jack", "Kim", "Leo", "Mia", "Noah",
    "Olga", "Paul", "Rosa", "Sam", "Tara", "Uma", "Vera", "Will", "Yuki", "Zoe",
)  # fmt: skip
_THINGS = (
    "apples", "books", "cards", "coins", "eggs", "flowers", "marbles", "pencils", "shells", "stamps", "stickers",
    "tickets",
)  # fmt: skip
_CONTAINERS = ("bags", "boxes", "jars", "packs", "rows", "trays")

_GAINS = (
    "{who} buys {n} more.",
    "{who} finds {n} more.",
    "{other} gives {who} another {n}.",
    "Then {who} gets {n} as a present.",
)
_LOSSES = (
    "{who} gives {n} to {other}.",
    "{who} loses {n} of them.",
    "{who} sells {n} of them.",
    "Then {n} of them go missing.",
)
_SHARES = (
    "{who} splits them equally into {n} piles and keeps one pile.",
    "{who} shares them equally among {n} people, {who} included.",
)
_MULTIPLES = (
    "{other} has {n} times as many {things} as {who}.",
    "{other} collects {n} times as many {things} as {who}.",
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One word problem.

    Attributes:
        question: The story and its question, one paragraph.
        solution: One ``a + b = c`` line per step, then ``#### answer``.
        answer: The final number.
        steps: The equations of the solution, in order; they decide the split.
    """

    question: str
    solution: str
    answer: int
    steps: tuple[str, ...]


def split_of(steps: tuple[str, ...]) -> Split:
    """Return the split to which a chain of equations belongs, a pure function of the arithmetic alone."""
    digest = hashlib.sha256("\n".join(steps).encode()).digest()
    return "test" if digest[0] % _TEST_BUCKETS == 0 else "train"


def generate(split: Split, *, seed: int) -> Iterator[Problem]:
    """Yield word problems of one split without end, determined by ``seed``.

    Args:
        split: ``"train"`` or ``"test"``; no calculation is ever in both.
        seed: The same seed gives the same sequence on every platform.
    """
    rng = random.Random(f"word_problems/{split}/{seed}")
    while True:
        problem = _tell(rng)
        if split_of(problem.steps) == split:
            yield problem


def problems(split: Split, count: int, *, seed: int) -> list[Problem]:
    """Return ``count`` problems with distinct questions; a shorter list is a prefix of a longer one."""
    found: dict[str, Problem] = {}
    source = generate(split, seed=seed)
    while len(found) < count:
        problem = next(source)
        found.setdefault(problem.question, problem)
    return list(found.values())


def _tell(rng: random.Random) -> Problem:
    """Draw one story: an opening quantity, operations on it, and the question that its last step answers."""
    who, other = rng.sample(_NAMES, 2)
    things = rng.choice(_THINGS)
    length = rng.randint(MIN_STEPS, MAX_STEPS)
    sentences: list[str] = []
    steps: list[str] = []

    if rng.random() < 0.4:
        count, each = rng.randint(2, 9), rng.randint(11, 99)
        sentences.append(f"{who} has {count} {rng.choice(_CONTAINERS)} with {each} {things} in each.")
        value = count * each
        steps.append(f"{count} * {each} = {value}")
    else:
        value = rng.randint(20, 400)
        sentences.append(f"{who} has {value} {things}.")

    together = False
    while len(steps) < length:
        remaining = length - len(steps)
        if remaining == 2 and value * 3 <= MAX_VALUE and rng.random() < 0.3:
            factor = rng.randint(2, min(6, MAX_VALUE // value - 1))
            sentences.append(rng.choice(_MULTIPLES).format(who=who, other=other, n=factor, things=things))
            multiple = value * factor
            steps += [f"{value} * {factor} = {multiple}", f"{value} + {multiple} = {value + multiple}"]
            value += multiple
            together = True
            break
        sentence, step, value = _operate(rng, value, who=who, other=other)
        sentences.append(sentence)
        steps.append(step)

    if together:
        sentences.append(f"How many {things} do {who} and {other} have together?")
    else:
        sentences.append(f"How many {things} does {who} have now?")
    solution = "\n".join([*steps, f"#### {value}"])
    return Problem(question=" ".join(sentences), solution=solution, answer=value, steps=tuple(steps))


def _operate(rng: random.Random, value: int, *, who: str, other: str) -> tuple[str, str, int]:
    """Draw one operation that keeps ``value`` within [1, MAX_VALUE]; return its sentence, equation and result."""
    divisors = [n for n in range(2, 10) if value % n == 0 and value // n >= 2]
    kinds = ["gain"] * (value + 9 <= MAX_VALUE) + ["loss"] * (value > 20) + ["share"] * bool(divisors)
    kind = rng.choice(kinds)
    if kind == "gain":
        n = rng.randint(9, min(399, MAX_VALUE - value))
        template, step, result = rng.choice(_GAINS), f"{value} + {n} = {value + n}", value + n
    elif kind == "loss":
        n = rng.randint(9, min(399, value - 2))
        template, step, result = rng.choice(_LOSSES), f"{value} - {n} = {value - n}", value - n
    else:
        n = rng.choice(divisors)
        template, step, result = rng.choice(_SHARES), f"{value} / {n} = {value // n}", value // n
    return template.format(who=who, other=other, n=n), step, result
