"""From a weighed group to the record of its step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from backends import Completion
from ets_agent import energy
from ets_agent._group import Group, Rollout
from ets_agent.chains import Move
from ets_agent.diagnostics import ProposalCheck
from ets_agent.results import Diagnostics, RolloutTrace, StepTrace


def step_trace(
    step: int,
    group: Group,
    *,
    texts: Sequence[str],
    estimate: energy.Estimate,
    move: Move,
    chosen: int,
    check: ProposalCheck | None,
    answer: Callable[[Completion], str | None],
) -> StepTrace:
    """Return the trace of one step.

    Args:
        step: Number of the step, from 1.
        group: Its candidates.
        texts: The response of each chain before the step.
        estimate: The candidates of all chains, weighed together.
        move: Where the chains went.
        chosen: The candidate to call the chosen one.
        check: What the importance weights say; None without a proposal.
        answer: Reads the final answer in a completion.
    """

    def record(rollout: Rollout, share: float, *, finished: bool) -> RolloutTrace:
        return RolloutTrace(
            text=rollout.completion.text,
            answer=answer(rollout.completion),
            reward=rollout.reward,
            logprob=rollout.completion.logprob,
            log_ratio=None if check is None or finished or rollout.failed else rollout.log_ratio,
            share=share,
            finish_reason=rollout.completion.finish_reason,
        )

    rollouts: list[tuple[RolloutTrace, ...]] = []
    # One draw for each candidate, the last and so the heaviest of its own: in all else its draws are the same.
    draws = {group.source[draw]: draw for draw in estimate.weights.argsort().tolist()}
    for place, candidate in enumerate(group.candidates):
        draw = draws[place]
        parts = (estimate.shares[draw] / (estimate.weights[draw] or 1.0)).tolist()
        rollouts.append(
            tuple(
                record(rollout, share, finished=candidate.state.finished)
                for rollout, share in zip(candidate.rollouts, parts, strict=False)
            )
        )
    shares = group.rollout_shares(estimate)
    owners = group.owners.tolist()
    # Not validated: these are our own values, and validation would copy what identical candidates share.
    return StepTrace.model_construct(
        step=step,
        candidates=tuple(state.text[len(texts[owner]) :] for state, owner in zip(group.states, owners, strict=True)),
        finished=tuple(state.finished for state in group.states),
        log_energies=tuple(estimate.log_energies.tolist()),
        log_energy_errors=tuple(
            error if math.isfinite(error) else None for error in estimate.log_energy_errors.tolist()
        ),
        weights=tuple(estimate.weights.tolist()),
        ess=estimate.ess,
        chosen=chosen,
        chains=tuple(owners),
        kept=tuple(move.chosen),
        resampled=move.resampled,
        num_rollouts=max((len(candidate.rollouts) for candidate in group.unfinished), default=0),
        diagnostics=Diagnostics(
            rollout_ess=energy.effective_sample_size(shares),
            num_judged=sum(rollout.reward is not None for rollout in group.rollouts),
            largest_share=float(shares.max()),
            selection_error=energy.selection_error(estimate, group.source),
            ratio_ess=None if check is None else check.ess,
            num_ratios=0 if check is None else check.draws,
            pareto_k=None if check is None else check.pareto_k,
            verdict=None if check is None else check.verdict,
        ),
        rollouts=tuple(rollouts[place] for place in group.source),
        fallback=estimate.fallback,
        dropped=sum(rollout.reward is None for rollout in group.rollouts),
    )
