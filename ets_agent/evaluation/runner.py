"""Run a method over a list of problems, alone or in turn with another, and judge its answers against the right ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import rewards
from backends import Backend, Prompt
from ets_agent._proposal import check_proposal_settings
from ets_agent.config import ETSConfig
from ets_agent.errors import ConfigError
from ets_agent.evaluation.methods import Method, Setup, Solution, check_methods, make
from ets_agent.evaluation.report import EvalReport, ItemRecord
from ets_agent.sampler import DEFAULT_CONCURRENCY, item_seeds
from rewards import RewardSpec, equivalence_keys, extract_answer


class Problem(Protocol):
    """A question with one right answer."""

    @property
    def question(self) -> str:
        """What is asked."""
        ...

    @property
    def answer(self) -> int | str:
        """The right final answer."""
        ...


async def evaluate(
    backend: Backend,
    problems: Sequence[Problem],
    *,
    method: str = "ets",
    against: str | None = None,
    proposal: Backend | None = None,
    config: ETSConfig | None = None,
    reward: RewardSpec = "self_consistency",
    n: int | None = None,
    chat: bool | None = None,
    seed: int = 0,
    concurrency: int = DEFAULT_CONCURRENCY,
    on_progress: Callable[[ItemRecord], None] | None = None,
    benchmark: str | None = None,
) -> EvalReport:
    """Answer every problem by one method, or by two in turn, and report how many answers are right.

    The final answer of a response is what `rewards.extract_answer` reads in it; it is right if it has the value of the
    problem's answer, however it is written (`rewards.equivalence_keys`, as for the reward ``math_answer``).

    Problem i runs with its own seed, a function of ``seed`` and i alone: neither the concurrency, nor the number of
    problems, nor another method changes its answer. A problem that fails is recorded with its error and counts as
    wrong; the others go on.

    With ``against``, wall times can be compared. The problems go in chunks of ``concurrency``; each chunk is answered
    by one method, then by the other, and which one begins alternates, so that both see the machine in the same states.
    Before that both answer the first problem, unrecorded, so that what is made on first use does not count. Nor does
    the time that it takes to judge answers: those of a chunk are judged when the chunk is over.

    Args:
        backend: The reference model; it stays open.
        problems: The problems, each with ``question`` and ``answer``.
        method: A key of `METHODS`.
        against: Another one, or the same, to run in turn with it.
        proposal: A cheaper model for the rollouts of those methods that use one; it stays open.
        config: Settings of each run; its seed is replaced.
        reward: What guides or selects.
        n: Responses per problem for ``best_of_n``; by default as many as ETS would look at in one step.
        chat: Ask by a chat message instead of plain text; by default where the model takes chat messages.
        seed: Seed of the evaluation.
        concurrency: Most problems under way at the same time.
        on_progress: Called with each problem's record as soon as it is there, in no certain order; with ``against``,
            when its chunk is answered.
        benchmark: Name of the problem set, for the report.

    Raises:
        ConfigError: There is no such method, a setting is out of range, or a proposal is missing or for nothing.
        backends.CapabilityError: A model cannot do what a method needs.
        rewards.RewardError: There is no such reward.
    """
    names = [method] if against is None else [method, against]
    check_methods(names, proposal=proposal is not None, samples=n)
    if concurrency < 1:
        raise ConfigError(f"concurrency is {concurrency}; allowed: at least 1")
    settings = (config or ETSConfig()).replace(seed=seed)
    check_proposal_settings(settings, proposal=proposal is not None)
    both = backend.capabilities.chat and (proposal is None or proposal.capabilities.chat)
    as_chat = both if chat is None else chat
    judge = rewards.build(reward)
    setup = Setup(backend=backend, reward=judge, config=settings, proposal=proposal, samples=n)
    try:
        entrants = [
            _Entrant(name, make(name, setup), problems, item_seeds(seed, len(problems)), as_chat) for name in names
        ]
        await _run(entrants, concurrency=concurrency, on_progress=on_progress)
    finally:
        if judge is not reward:
            await judge.aclose()

    report: EvalReport | None = None
    for entrant in reversed(entrants):
        report = EvalReport(
            benchmark=benchmark,
            method=entrant.name,
            model=backend.name,
            proposal=proposal.name if proposal is not None and entrant.method.uses_proposal else None,
            reward=judge.label if entrant.method.uses_reward else None,
            seed=seed,
            config=entrant.method.config,
            chunk_seconds=tuple(entrant.chunk_seconds),
            items=tuple(entrant.items),
            against=report,
        )
    assert report is not None  # There is at least one entrant.
    return report


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What came of one problem, before it is judged."""

    index: int
    solution: Solution | None
    answer: str | None
    failure: str | None
    seconds: float


@dataclass(slots=True)
class _Entrant:
    """One method at the problems, and what came of it so far."""

    name: str
    method: Method
    problems: Sequence[Problem]
    seeds: Sequence[int]
    as_chat: bool
    items: list[ItemRecord] = field(default_factory=list)
    chunk_seconds: list[float] = field(default_factory=list)

    async def solve(self, index: int) -> _Attempt:
        """Answer one problem; whatever goes wrong is its result."""
        problem, seed = self.problems[index], self.seeds[index]
        prompt: Prompt = [{"role": "user", "content": problem.question}] if self.as_chat else problem.question
        solution: Solution | None = None
        answer: str | None = None
        failure: str | None = None
        began = time.monotonic()
        try:
            solution = await self.method.solve(prompt, seed=seed)
            answer = extract_answer(solution.text)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}".removesuffix(": ")
        return _Attempt(index, solution, answer, failure, time.monotonic() - began)

    async def grade(self, attempt: _Attempt) -> ItemRecord:
        """Judge what came of one problem."""
        problem, solution, answer = self.problems[attempt.index], attempt.solution, attempt.answer
        gold = str(problem.answer)
        judged = attempt.failure is None and answer is not None
        return ItemRecord(
            method=self.name,
            index=attempt.index,
            question=problem.question,
            gold=gold,
            text=None if solution is None else solution.text,
            answer=answer,
            correct=judged and len(set(await equivalence_keys([answer or "", gold]))) == 1,
            error=attempt.failure,
            tokens=0 if solution is None else solution.tokens,
            seconds=attempt.seconds,
            ess=None if solution is None else solution.ess,
            ratio_ess=None if solution is None else solution.ratio_ess,
            seed=self.seeds[attempt.index],
        )


async def _run(
    entrants: Sequence[_Entrant], *, concurrency: int, on_progress: Callable[[ItemRecord], None] | None
) -> None:
    """Let one method answer all problems, or several in turn, chunk by chunk."""
    count = len(entrants[0].problems)
    places = asyncio.Semaphore(concurrency)

    async def solve(entrant: _Entrant, index: int) -> _Attempt:
        async with places:
            return await entrant.solve(index)

    async def grade(entrant: _Entrant, solving: asyncio.Task[_Attempt], begin: asyncio.Event) -> ItemRecord:
        attempt = await solving
        await begin.wait()
        record = await entrant.grade(attempt)
        if on_progress is not None:
            on_progress(record)
        return record

    if len(entrants) == 1:
        chunks = [range(count)]
    else:
        chunks = [range(first, min(first + concurrency, count)) for first in range(0, count, concurrency)]
        for entrant in entrants if count else ():
            await entrant.solve(0)
    for number, chunk in enumerate(chunks):
        for entrant in entrants if number % 2 == 0 else reversed(entrants):
            may_grade = asyncio.Event()
            if len(entrants) == 1:  # There is no wall time to compare, so progress is told at once.
                may_grade.set()
            began = time.monotonic()
            async with asyncio.TaskGroup() as group:
                solving = [group.create_task(solve(entrant, index)) for index in chunk]
                grading = [group.create_task(grade(entrant, task, may_grade)) for task in solving]
                await asyncio.gather(*solving)
                entrant.chunk_seconds.append(time.monotonic() - began)
                may_grade.set()
            entrant.items += [task.result() for task in grading]
