"""One run of ETS: the loop that awaits backend and reward, step by step, and tells what happens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Literal, TypeVar

import numpy as np

from backends import Backend, BudgetExceededError, Completion, Prompt, State, row_seeds
from backends.concurrency import all_of
from backends.turns import take_turn
from backends.wrapper import layers
from ets_agent import chains, energy
from ets_agent._group import Group, Rollout
from ets_agent._rollouts import ProposalRollouts, ReferenceRollouts, RolloutSource
from ets_agent._spare import Spare
from ets_agent._trace import step_trace
from ets_agent.config import ETSConfig
from ets_agent.results import (
    BlockCommitted,
    CandidatesWeighed,
    Event,
    Finished,
    Result,
    StepStarted,
    StepTrace,
    Usage,
    Warned,
)
from rewards import Reward
from rewards.base import checked_verdicts
from rewards.timeouts import within

T = TypeVar("T")

CERTAIN = 0.05
"""With ``num_rollouts=(low, high)``, rollouts are added while `energy.selection_error` is above this."""


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
        proposal: The model that draws the rollouts; by default the reference.
    """

    def __init__(
        self,
        backend: Backend,
        reward: Reward,
        config: ETSConfig,
        prompt: Prompt,
        seed: int,
        *,
        proposal: Backend | None = None,
    ) -> None:
        """Nothing happens before `events` is iterated."""
        self._backend = backend
        self._proposal = proposal
        self._reward = reward.session()
        self._config = config
        self._prompt = prompt
        self._seed = seed
        self._source: RolloutSource = (
            ReferenceRollouts(backend)
            if proposal is None
            else ProposalRollouts(backend, proposal, config.proposal_sampling)
        )
        self._started = 0.0
        self._deadline: float | None = None
        self._prompt_tokens: int | None = None
        self._candidate_tokens = 0
        self._saved_tokens = 0.0
        self._log_normalizer: tuple[float | None, float | None] = (None, None)
        self._steps: list[StepTrace] = []
        self._warnings: list[str] = []
        self._ceiling = self._reward.maximum
        self._known: dict[State, Rollout] = {}
        self._text = ""
        self._best: Rollout | None = None
        self._best_tokens = 0
        self._plain: Completion | None = None

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
            yield Finished(result=self._cut_short("timeout"))
        except BudgetExceededError as error:
            self._warnings.append(str(error))
            yield Finished(result=self._cut_short("budget"))

    async def _steps_taken(self) -> AsyncGenerator[Event]:
        config = self._config
        blocks = config.blocks
        start = await self._within(
            self._backend.begin(
                self._prompt,
                max_tokens=config.max_tokens,
                # The reference's own rollouts are not weighed, so nobody looks at their log-probabilities.
                params=replace(config.sampling, confidence="confidence" in self._reward.needs, logprobs=False),
            )
        )
        self._prompt_tokens = start.prompt_tokens
        if len(blocks) > 1:  # Otherwise there is nothing to roll out.
            await self._within(self._source.begin(self._prompt, start, max_tokens=config.max_tokens))
        states, weights = [start] * config.num_chains, np.full(config.num_chains, 1 / config.num_chains)
        log_factors = np.zeros(config.num_chains)
        del start  # Its cache is to go when no chain stands on it any more.
        for index, block in enumerate(blocks):
            step = index + 1
            yield StepStarted(step=step, num_steps=len(blocks), text=self._text)
            extend_seed, rollout_seed, choice_seed, spare_seed = row_seeds(self._seed, 4, index)
            async with self._spare(states[0], spare_seed) if index == 0 else nullcontext():
                group = await self._draw_candidates(states, weights, block, extend_seed)
                estimate, problems = await self._weigh(group, states, log_factors, rollout_seed)
            check = group.check_proposal() if self._proposal is not None else None
            for message in [*problems, *([check.verdict] if check is not None and check.verdict is not None else [])]:
                self._warnings.append(message)
                yield Warned(step=step, message=message)

            await take_turn()
            rng = np.random.default_rng(choice_seed)
            pooled = chains.pool(estimate, group.owners, log_factors)
            move = chains.advance(
                estimate, pooled, group.owners, rng, chains=len(states), threshold=config.ess_threshold
            )
            texts, states = [state.text for state in states], [group.states[place] for place in move.chosen]
            log_factors, weights = move.log_factors, move.weights
            over = all(state.finished for state in states)
            # While chains go on, the heaviest state stands for all of them; at the end one of their answers is drawn.
            chain = energy.select(weights, rng) if over and len(states) > 1 else _heaviest(states, weights)
            chosen = move.chosen[chain]
            trace = step_trace(
                step,
                group,
                texts=texts,
                estimate=pooled,
                move=move,
                chosen=chosen,
                check=check,
                answer=self._answer,
            )
            self._steps.append(trace)
            committed = states[chain].text if over else _common_beginning([state.text for state in states])
            delta, self._text = committed[len(self._text) :], committed
            best = group.best(pooled, chosen)
            if best is not None or (self._best and not self._best.completion.text.startswith(committed)):
                self._best = best
                self._best_tokens = group.states[chosen].num_tokens + (best.completion.num_tokens if best else 0)
            yield CandidatesWeighed(trace=trace)
            yield BlockCommitted(step=step, delta=delta, text=committed)
            if over:
                yield Finished(result=self._finished(states[chain], group.candidates[group.source[chosen]].rollouts[0]))
                return
            self._source.keep(states)
            self._known = {
                state: group.candidates[group.source[place]].rollouts[0]
                for state, place in zip(states, move.chosen, strict=True)
                if state.finished
            }
            del group  # With the states, the backend's caches of what was not chosen go.
        raise AssertionError("the last block uses up the budget, which finishes every response")

    @asynccontextmanager
    async def _spare(self, start: State, seed: int) -> AsyncGenerator[None]:
        """Have something to return if a deadline or a token budget ends the run before anything is weighed."""
        if self._deadline is None and all(getattr(layer, "budget", None) is None for layer in layers(self._backend)):
            yield
            return
        spare = Spare(self._backend, start, seed)
        try:
            async with spare:
                try:
                    yield
                except BudgetExceededError:
                    await self._within(spare.drawn())  # Its tokens were set aside before they were spent.
                    raise
        finally:
            self._plain = spare.completion

    async def _draw_candidates(self, states: Sequence[State], weights: energy.Floats, block: int, seed: int) -> Group:
        """Draw M successors of every chain's state; a finished chain stays as it is, once.

        The draws of a chain have its weight as vote mass, be they one or M; those of a single chain have 1 each.
        """
        seeds = [seed, *row_seeds(seed, len(states) - 1)]  # The first chain's is that of a run with one chain.
        counts = [1 if state.finished else self._config.num_candidates for state in states]
        calls = [
            self._extend(state, count, block, own_seed)
            for state, count, own_seed in zip(states, counts, seeds, strict=True)
        ]
        drawn = await self._within(all_of(calls))
        owners = [chain for chain, candidates in enumerate(drawn) for _ in candidates]
        candidates = [candidate for group in drawn for candidate in group]
        total = self._config.num_candidates * len(states)
        masses = [total * float(weight) / count for weight, count in zip(weights, counts, strict=True)]
        return Group(candidates, owners, masses=masses, share=self._config.share_rollouts, known=self._known)

    async def _extend(self, state: State, count: int, block: int, seed: int) -> list[State]:
        """Draw a chain's candidates; they count also where another chain's cannot be drawn any more."""
        candidates = await self._backend.extend(state, count, tokens=block, seed=seed)
        self._candidate_tokens += sum(candidate.num_tokens - state.num_tokens for candidate in candidates)
        return candidates

    async def _weigh(
        self, group: Group, states: Sequence[State], log_factors: energy.Floats, seed: int
    ) -> tuple[energy.Estimate, list[str]]:
        """Roll out, judge and estimate, in rounds while the selection is uncertain; return also what went wrong.

        Every unfinished candidate gets as many rollouts as any other, and whether there is another round is decided on
        all of them together: a candidate that got more or less by its own luck would have a biased energy. The larger
        the group, the less a candidate's own rollouts weigh in that decision.
        """
        config, counts = self._config, self._config.rollout_rounds
        seeds = [seed, *row_seeds(seed, len(counts) - 1)]
        problems: list[str] = []
        self._reward.begin_step()
        for number, count in enumerate(counts):
            if group.unfinished:
                await self._within(self._source.draw(group.unfinished, states, count, seed=seeds[number]))
            problems += [problem for problem in await self._judge(group) if problem not in problems]
            estimate = group.estimate(kl_coef=config.kl_coef, estimator=config.estimator, ceiling=self._ceiling)
            if number == 0 and not self._steps and config.kl_coef > 0 and estimate.judged.any():
                # Before any decision: the number of rollouts must not depend on what they show.
                self._log_normalizer = energy.log_normalizer(estimate, group.source)
            if number + 1 == len(counts) or not group.unfinished:
                break
            pooled = chains.pool(estimate, group.owners, log_factors)
            if energy.selection_error(pooled, group.source) <= CERTAIN:
                break
        seen = [rollout.reward for rollout in group.rollouts if rollout.reward is not None]
        self._ceiling = max([*seen, *([] if self._ceiling is None else [self._ceiling])], default=None)
        for candidate in group.unfinished:
            cost = 1 if self._proposal is None else 2  # Every token of a proposal is scored, too.
            tokens = sum(rollout.completion.num_tokens for rollout in candidate.rollouts)
            self._saved_tokens += cost * tokens * (sum(counts) / len(candidate.rollouts) - 1)
        return estimate, problems

    async def _judge(self, group: Group) -> list[str]:
        """Score all complete responses of the step in one call; return what went wrong, if anything did.

        A reward that fails gives no verdict: its completions are dropped from the estimate, never scored 0.
        """
        rollouts = list(group.rollouts)
        failed = sum(rollout.failed for rollout in rollouts)
        problems = [f"{failed} of {len(rollouts)} rollouts failed and were left out"] if failed else []
        entries = group.votes(self._config.estimator)
        if self._reward.pointwise:  # A verdict holds whatever else is in the group.
            entries = list({id(rollout): (rollout, c) for rollout, c in entries if not rollout.judged}.values())
        if entries:
            name = f"reward {self._reward.label!r}"
            try:
                verdicts = self._reward.score(self._prompt, [completion for _, completion in entries])
                scores = checked_verdicts(
                    await self._within(within(self._reward.time_limit, verdicts, what=name)),
                    len(entries),
                    self._reward.label,
                )
            except _DeadlineError:
                raise
            except Exception as error:  # A reward is foreign code; whatever it raises costs its verdict, not the run.
                problems.append(f"{name} failed, its verdicts were left out: {type(error).__name__}: {error}")
                for rollout, _ in entries:  # Those of an earlier round were about another group.
                    rollout.reward = None
            else:
                problems += self._reward.problems
                for (rollout, _), score in zip(entries, scores, strict=True):
                    rollout.reward, rollout.judged = score, True
        return problems

    def _answer(self, completion: Completion) -> str | None:
        """Ask the reward for the final answer; what it cannot read is no answer."""
        try:
            answer = self._reward.answer(completion)
        except (Exception, SystemExit) as error:  # Foreign code, as in `_judge`.
            warning = f"the reward could not read an answer: {type(error).__name__}: {error}"
            if warning not in self._warnings:
                self._warnings.append(warning)
            return None
        return answer if answer is None else str(answer)

    def _finished(self, state: State, rollout: Rollout) -> Result:
        reason: Literal["stop", "length"] = "stop" if state.finish_reason == "stop" else "length"
        return self._result(rollout.completion, rollout.reward, reason, state.num_tokens)

    def _cut_short(self, by: Literal["timeout", "budget"]) -> Result:
        """Return the last choice's best-weighted complete answer, or where nothing was weighed yet a plain draw.

        The committed text is what remains where there is neither.
        """
        if self._best is not None:
            return self._result(self._best.completion, self._best.reward, by, self._best_tokens)
        if not self._steps and self._plain is not None:
            self._warnings.append("it was cut short before anything was weighed; this is a plain draw of the model")
            return self._result(self._plain, None, by, self._plain.num_tokens)
        self._warnings.append("it was cut short before any response was complete; this is what was committed by then")
        return self._result(Completion(text=self._text, finish_reason="length"), None, by, None)

    def _result(
        self,
        completion: Completion,
        reward: float | None,
        finish_reason: Literal["stop", "length", "timeout", "budget"],
        tokens: int | None,
    ) -> Result:
        log_normalizer, log_normalizer_error = self._log_normalizer
        return Result(
            text=completion.text,
            answer=self._answer(completion),
            reward=reward,
            finish_reason=finish_reason,
            steps=tuple(self._steps),
            usage=Usage(
                prompt_tokens=self._prompt_tokens,
                response_tokens=tokens,
                candidate_tokens=self._candidate_tokens,
                rollout_tokens=self._source.drawn_tokens + (self._plain.num_tokens if self._plain else 0),
                scoring_tokens=self._source.scored_tokens,
                saved_tokens=round(self._saved_tokens),
                seconds=time.monotonic() - self._started,
            ),
            seed=self._seed,
            log_normalizer=log_normalizer,
            log_normalizer_error=log_normalizer_error,
            model=self._backend.name,
            proposal=None if self._proposal is None else self._proposal.name,
            config=self._config,
            warnings=self._warnings,
        )

    async def _within(self, work: Awaitable[T]) -> T:
        """Await something, but no longer than the deadline; it is cancelled then."""
        if self._deadline is None:
            return await work
        scope = asyncio.timeout_at(self._deadline)
        try:
            async with scope:
                return await work
        except TimeoutError as error:
            if scope.expired():
                raise _DeadlineError from error
            raise


def _heaviest(states: Sequence[State], weights: energy.Floats) -> int:
    """Return the number of a chain on the state that carries the most weight, all chains that stand on it together."""
    totals: dict[State, float] = {}
    for state, weight in zip(states, weights.tolist(), strict=True):
        totals[state] = totals.get(state, 0.0) + weight
    return max(range(len(states)), key=lambda chain: totals[states[chain]])


def _common_beginning(texts: Sequence[str]) -> str:
    """Return the longest text with which all of them begin."""
    first, last = min(texts), max(texts)  # All others stand between these two, and so begin alike.
    same = (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: next(same, len(first))]
