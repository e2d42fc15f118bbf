"""The generated problems: right, disjoint between training and test by their arithmetic, and reproducible."""

from __future__ import annotations

import re
from itertools import islice

from ets_agent.evaluation import word_problems
from ets_agent.evaluation.word_problems import Problem
from rewards import canonical, extract_answer


def solved(problem: Problem) -> int:
    """Work the solution out again, line by line."""
    value = 0
    for line in problem.solution.splitlines()[:-1]:
        left, operator, right, equals, result = line.split()
        assert equals == "="
        a, b = int(left), int(right)
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operator]
        assert operator != "/" or a % b == 0
        assert int(result) == value
    return value


def test_solutions_are_right_and_of_two_to_four_steps() -> None:
    for problem in word_problems.problems("test", 500, seed=3):
        assert solved(problem) == problem.answer
        assert 2 <= len(problem.steps) <= 4
        assert problem.solution.endswith(f"\n#### {problem.answer}")
        assert extract_answer(problem.solution) == canonical(str(problem.answer))
        assert 1 <= problem.answer <= word_problems.MAX_VALUE


def test_every_number_of_the_first_step_is_in_the_question() -> None:
    for problem in word_problems.problems("train", 300, seed=4):
        told = set(re.findall(r"\d+", problem.question))
        known: set[str] = set()
        for step in problem.steps:
            left, _, right, _, result = step.split()
            assert {left, right} <= told | known
            known.add(result)


def test_training_and_test_never_share_a_calculation() -> None:
    train = {problem.steps for problem in islice(word_problems.generate("train", seed=0), 20_000)}
    test = {problem.steps for problem in islice(word_problems.generate("test", seed=0), 5_000)}
    assert len(test) > 4_000
    assert not train & test
    assert {word_problems.split_of(steps) for steps in train} == {"train"}
    assert {word_problems.split_of(steps) for steps in test} == {"test"}


def test_the_same_seed_tells_the_same_stories() -> None:
    first = word_problems.problems("test", 20, seed=1)
    assert word_problems.problems("test", 30, seed=1)[:20] == first
    assert word_problems.problems("test", 20, seed=2) != first
    assert len({problem.question for problem in word_problems.problems("test", 500, seed=1)}) == 500


def test_the_stories_never_change() -> None:
    """The embedded models' measured accuracy belongs to these very problems."""
    first = next(word_problems.generate("test", seed=0))
    assert first.question.startswith("Will has 241 tickets. Will buys 319 more.")
    assert first.steps == ("241 + 319 = 560", "560 + 72 = 632", "632 - 222 = 410")
