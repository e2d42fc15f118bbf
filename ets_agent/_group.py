"""The candidates of one step with everything that is found out about them: rollouts, rewards, weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from backends import Completion, State
from ets_agent import energy
from ets_agent.chains import Indices
from ets_agent.diagnostics import ProposalCheck, check_proposal


@dataclass(slots=True)
class Rollout:
    """One complete response by which a candidate is judged.

    Attributes:
        completion: The response.
        log_ratio: log ρ (nats), its log-probability under the reference over that under the proposal; 0 where it comes
            from the reference.
        reward: None until, or where, there is no verdict.
        judged: Whether the reward was asked.
    """

    completion: Completion
    log_ratio: float = 0.0
    reward: float | None = None
    judged: bool = False

    @property
    def failed(self) -> bool:
        """Whether the draw failed, so that there is nothing to judge."""
        return self.completion.finish_reason == "error"


@dataclass(slots=True, eq=False)
class Candidate:
    """A state that was drawn at least once in this step.

    Attributes:
        state: The state.
        chain: The first chain that drew it.
        masses: For each time that it was drawn, the vote mass of that draw.
        rollouts: The complete responses that follow from it; a finished one is its own.
    """

    state: State
    chain: int
    masses: list[float] = field(default_factory=list)
    rollouts: list[Rollout] = field(default_factory=list)


class Group:
    """The candidates of one step; identical ones may share rollouts, and count as often as they were drawn.

    Args:
        states: What was drawn, one entry per draw.
        owners: Number of the chain that each of them continues.
        masses: Vote mass of each chain's draws, by chain; 1 for a single chain.
        share: Whether identical unfinished states share rollouts. Finished ones always do: theirs has no noise.
        known: Finished states of earlier steps, with what was found out about them.
    """

    def __init__(
        self,
        states: Sequence[State],
        owners: Sequence[int],
        *,
        masses: Sequence[float] = (1.0,),
        share: bool = True,
        known: Mapping[State, Rollout] = MappingProxyType({}),
    ) -> None:
        """Find out which draws are the same."""
        self.states = states
        self.owners: Indices = np.array(owners, dtype=np.intp)
        self.candidates: list[Candidate] = []
        self.source: list[int] = []
        """For each draw the place of its candidate."""
        places: dict[object, int] = {}
        for draw, (state, owner) in enumerate(zip(states, owners, strict=True)):
            place = places.setdefault(state if share or state.finished else (state, draw), len(places))
            if place == len(self.candidates):
                self.candidates.append(Candidate(state, owner))
            self.candidates[place].masses.append(masses[owner])
            self.source.append(place)
        for candidate in self.candidates:
            if candidate.state.finish_reason is not None:
                itself = Completion(
                    text=candidate.state.text,
                    finish_reason=candidate.state.finish_reason,
                    confidence=candidate.state.confidence,
                )
                candidate.rollouts.append(known.get(candidate.state) or Rollout(itself))

    @property
    def unfinished(self) -> list[Candidate]:
        """Candidates that need rollouts."""
        return [candidate for candidate in self.candidates if not candidate.state.finished]

    @property
    def rollouts(self) -> Iterator[Rollout]:
        """All rollouts, finished candidates among them."""
        return (rollout for candidate in self.candidates for rollout in candidate.rollouts)

    def votes(self, estimator: energy.Estimator) -> list[tuple[Rollout, Completion]]:
        """Return what the reward gets to see, with the rollout whose reward it decides; failed draws are left out.

        Every draw of a candidate has the mass of its chain's draws, whether it is finished or not. A finished one
        appears as often as it was drawn, with the weight of K rollouts each time; the rollouts of an unfinished one
        weigh as much as all of its draws, times their importance weights.
        """
        log_rollouts = math.log(max((len(candidate.rollouts) for candidate in self.unfinished), default=1))
        ratios = self._table(lambda rollout: math.nan if rollout.failed else rollout.log_ratio)
        log_weights = energy.importance_log_weights(ratios, ~np.isnan(ratios), estimator)
        entries: list[tuple[Rollout, Completion]] = []
        for candidate, line in zip(self.candidates, log_weights, strict=True):
            if candidate.state.finished:
                (rollout,) = candidate.rollouts
                entries += [
                    (rollout, rollout.completion.weighted(log_rollouts + math.log(mass))) for mass in candidate.masses
                ]
            else:
                log_mass = math.log(sum(candidate.masses))
                entries += [
                    (rollout, rollout.completion.weighted(log_mass + float(log_weight)))
                    for rollout, log_weight in zip(candidate.rollouts, line, strict=False)
                    if not rollout.failed
                ]
        return entries

    def estimate(self, *, kl_coef: float, estimator: energy.Estimator, ceiling: float | None = None) -> energy.Estimate:
        """Return the energies of all draws, weighed without regard to the chains."""
        rewards = self._table(lambda rollout: math.nan if rollout.reward is None else rollout.reward)
        ratios = self._table(lambda rollout: rollout.log_ratio)
        exact = np.array([candidate.state.finished for candidate in self.candidates])
        return energy.estimate(
            rewards[self.source],
            kl_coef=kl_coef,
            log_ratios=ratios[self.source],
            estimator=estimator,
            exact=exact[self.source],
            ceiling=ceiling,
        )

    def best(self, estimate: energy.Estimate, chosen: int) -> Rollout | None:
        """Return the chosen candidate's complete response with the largest share of the weight."""
        rollouts = self.candidates[self.source[chosen]].rollouts
        usable = [entry for entry in zip(estimate.shares[chosen], rollouts, strict=False) if not entry[1].failed]
        return max(usable, key=lambda entry: float(entry[0]))[1] if usable else None

    def rollout_shares(self, estimate: energy.Estimate) -> energy.Floats:
        """Return each rollout's share of the whole weight, those of shared ones added up; they sum to 1."""
        shares = np.zeros((len(self.candidates), estimate.shares.shape[1]))
        np.add.at(shares, self.source, estimate.shares)
        return shares.ravel()

    def check_proposal(self) -> ProposalCheck | None:
        """Return what the importance weights say, or None where there are none."""
        ratios = [r.log_ratio for candidate in self.unfinished for r in candidate.rollouts if not r.failed]
        return check_proposal(np.array(ratios)) if ratios else None

    def _table(self, number: Callable[[Rollout], float]) -> energy.Floats:
        """Return one number per rollout, shape (candidates, most rollouts); NaN where there is none."""
        width = max(1, *(len(candidate.rollouts) for candidate in self.candidates))
        table = np.full((len(self.candidates), width), math.nan)
        for line, candidate in zip(table, self.candidates, strict=True):
            line[: len(candidate.rollouts)] = [number(rollout) for rollout in candidate.rollouts]
        return table
