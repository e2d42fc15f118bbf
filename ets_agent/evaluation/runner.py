"""Run one method over a list of problems, so many at a time, and judge its answers against the right ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import rewards
from backends import Backend, Prompt
from ets_agent.config import ETSConfig
from ets_agent.errors import ConfigError
from ets_agent.evaluation.methods import METHODS, Method, Setup
from ets_agent.evaluation.report import EvalReport, ItemRecord
from ets_agent.sampler import DEFAULT_CONCURRENCY, item_seeds
from rewards import Reward, RewardSpec, canonical, extract_answer


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
    config: ETSConfig | None = None,
    reward: RewardSpec = "self_consistency",
    n: int | None = None,
    chat: bool | None = None,
    seed: int = 0,
    concurrency: int = DEFAULT_CONCURRENCY,
    on_progress: Callable[[ItemRecord], None] | None = None,
    benchmark: str | None = None,
) -> EvalReport:
    """Answer every problem by one method and report how many answers are right.

    Problem i runs with its own seed, a function of ``seed`` and i alone: neither the concurrency nor the number of
    problems changes its answer. A problem that fails is recorded with its error and counts as wrong; the others go on.

    Args:
        backend: The reference model; it stays open.
        problems: The problems, each with ``question`` and ``answer``.
        method: A key of `METHODS`.
        config: Settings of each run; its seed is replaced.
        reward: What guides or selects.
        n: Responses per problem for ``best_of_n``, M·K by default.
        chat: Ask by a chat message instead of plain text; by default where the model takes chat messages.
        seed: Seed of the evaluation.
        concurrency: Most problems under way at the same time.
        on_progress: Called with each problem's record as soon as it is there, in no certain order.
        benchmark: Name of the problem set, for the report.

    Raises:
        ConfigError: There is no such method, or a setting is out of range.
        backends.CapabilityError: The model cannot do what the method needs.
        rewards.RewardError: There is no such reward.
    """
    if method not in METHODS:
        raise ConfigError(f"there is no method {method!r}; allowed: {', '.join(METHODS)}")
    if concurrency < 1:
        raise ConfigError(f"concurrency is {concurrency}; allowed: at least 1")
    settings = (config or ETSConfig()).replace(seed=seed)
    as_chat = backend.capabilities.chat if chat is None else chat
    judge = rewards.build(reward)
    started = time.monotonic()
    try:
        solver = METHODS[method](Setup(backend=backend, reward=judge, config=settings, samples=n))
        items = await _solve_all(
            solver, problems, as_chat=as_chat, seed=seed, concurrency=concurrency, on_progress=on_progress
        )
    finally:
        if judge is not reward:
            await judge.aclose()
    return EvalReport(
        benchmark=benchmark,
        method=method,
        model=backend.name,
        reward=_reward_name(judge) if solver.uses_reward else None,
        seed=seed,
        config=solver.config,
        seconds=time.monotonic() - started,
        items=tuple(items),
    )


async def _solve_all(
    solver: Method,
    problems: Sequence[Problem],
    *,
    as_chat: bool,
    seed: int,
    concurrency: int,
    on_progress: Callable[[ItemRecord], None] | None,
) -> list[ItemRecord]:
    places = asyncio.Semaphore(concurrency)

    async def run(index: int, problem: Problem, item_seed: int) -> ItemRecord:
        async with places:
            record = await _solve_one(solver, problem, index=index, as_chat=as_chat, seed=item_seed)
        if on_progress is not None:
            on_progress(record)
        return record

    seeds = item_seeds(seed, len(problems))
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(run(index, problem, item_seed))
            for index, (problem, item_seed) in enumerate(zip(problems, seeds, strict=True))
        ]
    return [task.result() for task in tasks]


async def _solve_one(solver: Method, problem: Problem, *, index: int, as_chat: bool, seed: int) -> ItemRecord:
    gold = str(problem.answer)
    prompt: Prompt = [{"role": "user", "content": problem.question}] if as_chat else problem.question
    text: str | None = None
    answer: str | None = None
    tokens, failure = 0, None
    try:
        solution = await solver.solve(prompt, seed=seed)
        text, tokens = solution.text, solution.tokens
        answer = extract_answer(text)
    except Exception as error:  # Whatever it was, it is this problem's result.
        failure = f"{type(error).__name__}: {error}".removesuffix(": ")
    return ItemRecord(
        index=index,
        question=problem.question,
        gold=gold,
        text=text,
        answer=answer,
        correct=failure is None and answer is not None and canonical(answer) == canonical(gold),
        error=failure,
        tokens=tokens,
        seed=seed,
    )


def _reward_name(reward: Reward) -> str:
    return reward.name or type(reward).__name__
