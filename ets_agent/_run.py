"""One run of ETS: the loop that awaits backend and reward, step by step, and tells what happens."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from typing import Literal, TypeVar

import numpy as np

from backends import Backend, Completion, Prompt, State
from backends.base import row_seeds
from ets_agent import energy
from ets_agent.config import ETSConfig
from ets_agent.results import (
    BlockCommitted,
    CandidatesWeighed,
    Event,
    Finished,
    Result,
    RolloutTrace,
    StepStarted,
    StepTrace,
    Usage,
    Warned,
)
from rewards import Reward

T = TypeVar("T")


class _DeadlineError(Exception):
    """The run's own deadline, told apart from any other timeout."""


class Run:
    """One guided completion under way.

    Args:
        backend: The reference model.
        reward: The reward; its `Reward.session` is asked for once.
        config: Settings.
        prompt: Text or chat messages.
        seed: Seed of everything random in the run.
    """

    def __init__(self, backend: Backend, reward: Reward, config: ETSConfig, prompt: Prompt, seed: int) -> None:
        """Nothing happens before `events` is iterated."""
        self._backend = backend
        self._reward = reward.session()
        self._config = config
        self._prompt = prompt
        self._seed = seed
        self._started = 0.0
        self._deadline: float | None = None
        self._candidate_tokens = 0
        self._rollout_tokens = 0
        self._steps: list[StepTrace] = []
        self._warnings: list[str] = []
        self._state: State | None = None
        self._best: tuple[Completion, float | None] | None = None

    async def events(self) -> AsyncGenerator[Event]:
        """Run to the end, or to the deadline, and yield what happens; the last event is `Finished`."""
        self._started = time.monotonic()
        if self._config.timeout is not None:
            self._deadline = asyncio.get_running_loop().time() + self._config.timeout
        try:
            async with aclosing(self._steps_taken()) as events:
                async for event in events:
                    yield event
        except _DeadlineError:
            yield Finished(result=self._cut_short())

    async def _steps_taken(self) -> AsyncGenerator[Event]:
        config = self._config
        blocks = config.blocks
        state = await self._within(
            self._backend.begin(self._prompt, max_tokens=config.max_tokens, params=config.sampling)
        )
        reward: float | None = None
        for index, block in enumerate(blocks):
            self._state = state
            step = index + 1
            yield StepStarted(step=step, num_steps=len(blocks), text=state.text)
            extend_seed, rollout_seed, choice_seed = row_seeds(self._seed, 3, index)
            candidates = await self._within(
                self._backend.extend(state, config.num_candidates, tokens=block, seed=extend_seed)
            )
            self._candidate_tokens += sum(candidate.num_tokens - state.num_tokens for candidate in candidates)
            group = _Group(candidates)
            await self._roll_out(group, rollout_seed)
            warning = await self._judge(group)
            if warning is not None:
                self._warnings.append(warning)
                yield Warned(step=step, message=warning)

            estimate = energy.estimate(group.rewards()[group.source], kl_coef=config.kl_coef)
            chosen = energy.select(estimate.weights, np.random.default_rng(choice_seed))
            trace = self._trace(step, state, group, estimate, chosen)
            self._steps.append(trace)
            self._best = group.best(estimate, chosen) or self._best
            yield CandidatesWeighed(trace=trace)

            delta = trace.candidates[chosen]
            state = candidates[chosen]
            yield BlockCommitted(step=step, delta=delta, text=state.text)
            if state.finished:
                reward = group.scores[group.source[chosen]][0]
                break
            del candidates, group  # With the states, the backend's caches of what was not chosen go.
        completion = Completion(text=state.text, finish_reason=state.finish_reason or "length")
        yield Finished(result=self._result(completion, reward, "stop" if state.finish_reason == "stop" else "length"))

    async def _roll_out(self, group: _Group, seed: int) -> None:
        """Give every distinct candidate its complete responses; a finished one is its own."""
        unfinished = [index for index, state in enumerate(group.distinct) if not state.finished]
        if unfinished:
            states = [group.distinct[index] for index in unfinished]
            drawn = await self._within(self._backend.rollout(states, self._config.num_rollouts, seed=seed))
            for index, completions in zip(unfinished, drawn, strict=True):
                group.completions[index] = completions
                self._rollout_tokens += sum(len(completion.token_ids) for completion in completions)

    async def _judge(self, group: _Group) -> str | None:
        """Score all complete responses of the step in one call; return what went wrong, if anything did.

        A reward that fails gives no verdict: its completions are dropped from the estimate, never scored 0.
        """
        entries = group.votes(self._config.num_rollouts)
        usable = [(index, k, completion) for index, k, completion in entries if completion.finish_reason != "error"]
        failed = len(entries) - len(usable)
        problems = [f"{failed} of {len(entries)} rollouts failed and were left out"] if failed else []
        if usable:
            try:
                scores = await self._within(
                    self._reward.score(self._prompt, [completion for _, _, completion in usable])
                )
                _check_scores(scores, len(usable))
            except _DeadlineError:
                raise
            except Exception as error:  # A reward is foreign code; whatever it raises costs its verdict, not the run.
                name = self._reward.name or type(self._reward).__name__
                problems.append(f"reward {name} failed, its verdicts were left out: {type(error).__name__}: {error}")
            else:
                for (index, k, _), score in zip(usable, scores, strict=True):
                    group.scores[index][k] = score
        return "; ".join(problems) or None

    def _trace(self, step: int, state: State, group: _Group, estimate: energy.Estimate, chosen: int) -> StepTrace:
        rollouts = [
            [
                RolloutTrace(
                    text=completion.text,
                    answer=self._answer(completion),
                    reward=score,
                    logprob=completion.logprob,
                    finish_reason=completion.finish_reason,
                )
                for completion, score in zip(completions, scores, strict=True)
            ]
            for completions, scores in zip(group.completions, group.scores, strict=True)
        ]
        return StepTrace(
            step=step,
            candidates=[candidate.text[len(state.text) :] for candidate in group.candidates],
            finished=[candidate.finished for candidate in group.candidates],
            log_energies=estimate.log_energies.tolist(),
            weights=estimate.weights.tolist(),
            ess=estimate.ess,
            chosen=chosen,
            rollouts=[rollouts[index] for index in group.source],
            fallback=estimate.fallback,
            dropped=sum(score is None for scores in group.scores for score in scores),
        )

    def _answer(self, completion: Completion) -> str | None:
        """Ask the reward for the final answer; what it cannot read is no answer."""
        try:
            answer = self._reward.answer(completion)
        except Exception as error:  # Foreign code, as in `_judge`.
            warning = f"the reward could not read an answer: {type(error).__name__}: {error}"
            if warning not in self._warnings:
                self._warnings.append(warning)
            return None
        return answer if answer is None else str(answer)

    def _cut_short(self) -> Result:
        """Return the last choice's best-weighted complete answer; the committed text where there is none yet."""
        if self._best is None:
            text = self._state.text if self._state is not None else ""
            return self._result(Completion(text=text, finish_reason="length"), None, "timeout")
        return self._result(*self._best, "timeout")

    def _result(
        self, completion: Completion, reward: float | None, finish_reason: Literal["stop", "length", "timeout"]
    ) -> Result:
        return Result(
            text=completion.text,
            answer=self._answer(completion),
            reward=reward,
            finish_reason=finish_reason,
            steps=self._steps,
            usage=Usage(
                candidate_tokens=self._candidate_tokens,
                rollout_tokens=self._rollout_tokens,
                seconds=time.monotonic() - self._started,
            ),
            seed=self._seed,
            model=self._backend.name,
            config=self._config,
            warnings=self._warnings,
        )

    async def _within(self, work: Awaitable[T]) -> T:
        """Await something, but no longer than the deadline; it is cancelled then."""
        scope = asyncio.timeout_at(self._deadline)
        try:
            async with scope:
                return await work
        except TimeoutError as error:
            if scope.expired():
                raise _DeadlineError from error
            raise


class _Group:
    """The candidates of one step; identical ones share rollouts, and count as often as they were drawn."""

    def __init__(self, candidates: Sequence[State]) -> None:
        self.candidates = candidates
        places: dict[State, int] = {}
        self.source = [places.setdefault(candidate, len(places)) for candidate in candidates]
        self.distinct = list(places)
        counts = Counter(self.source)
        self.multiplicity = [counts[index] for index in range(len(self.distinct))]
        self.completions: list[list[Completion]] = [
            [Completion(text=state.text, finish_reason=state.finish_reason)] if state.finish_reason else []
            for state in self.distinct
        ]
        self._scores: list[list[float | None]] | None = None

    @property
    def scores(self) -> list[list[float | None]]:
        """Rewards of `completions`; None until there is a verdict."""
        if self._scores is None:
            self._scores = [[None] * len(completions) for completions in self.completions]
        return self._scores

    def votes(self, num_rollouts: int) -> list[tuple[int, int, Completion]]:
        """Return what the reward gets to see: (distinct candidate, rollout, completion) per draw.

        Every draw of a candidate has the same mass in the group. A finished one appears as often as it was drawn, with
        the weight of K rollouts each time; the rollouts of an unfinished one weigh as many draws as it has.
        """
        entries = []
        for index, (state, completions, count) in enumerate(
            zip(self.distinct, self.completions, self.multiplicity, strict=True)
        ):
            if state.finished:
                entries += [(index, 0, completions[0].weighted(math.log(num_rollouts)))] * count
            else:
                entries += [
                    (index, k, completion.weighted(math.log(count))) for k, completion in enumerate(completions)
                ]
        return entries

    def rewards(self) -> energy.Floats:
        """Return the rewards of the distinct candidates as an array (candidates, K), NaN where there is none."""
        width = max(1, *(len(scores) for scores in self.scores))
        rows = [
            [math.nan if score is None else score for score in scores] + [math.nan] * (width - len(scores))
            for scores in self.scores
        ]
        return np.array(rows, dtype=np.float64)

    def best(self, estimate: energy.Estimate, chosen: int) -> tuple[Completion, float | None] | None:
        """Return the chosen candidate's complete response with the largest share of the weight, and its reward."""
        index = self.source[chosen]
        drawn = zip(estimate.shares[chosen].tolist(), self.completions[index], self.scores[index], strict=False)
        usable = [entry for entry in drawn if entry[1].finish_reason != "error"]
        if not usable:
            return None
        _, completion, score = max(usable, key=lambda entry: entry[0])
        return completion, score


def _check_scores(scores: Sequence[float | None], expected: int) -> None:
    """Refuse what is no list of verdicts."""
    if len(scores) != expected:
        raise ValueError(f"it returned {len(scores)} rewards for {expected} completions")
    for score in scores:
        if score is not None and (math.isnan(score) or score == math.inf):
            raise ValueError(f"it returned {score}; allowed are finite numbers, minus infinity and None")
