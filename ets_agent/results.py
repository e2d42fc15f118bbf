"""What a run gives back: the answer, a trace of every step, and what it cost. All of it survives a JSON round trip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from backends import FinishReason
from ets_agent.config import ETSConfig
from ets_agent.energy import Fallback

_CONFIG = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", use_attribute_docstrings=True)


class _Record(BaseModel):
    """A frozen model whose infinities are legal JSON."""

    model_config = _CONFIG


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutTrace:
    """One complete response by which a candidate was judged.

    It is no model, because a run has hundreds of them, and a model takes three times as many objects.
    """

    __pydantic_config__ = _CONFIG

    text: str
    """The whole response."""
    answer: str | None
    """What the reward read as its final answer."""
    reward: float | None
    """r(y, x_0); None where there was no verdict."""
    logprob: float | None
    """Log-probability of the rollout's own tokens under the model that drew it (nats); None where it is not known."""
    log_ratio: float | None = None
    """log ρ: how much more probable they are under the reference (nats); None where no proposal has drawn them."""
    share: float = 0.0
    """Its share of its candidate's weight, 0 to 1; 0 for all of a candidate without weight."""
    finish_reason: FinishReason
    """Why it ended; ``error`` marks a failed draw, which was left out."""


class Diagnostics(_Record):
    """How far a step's weights can be trusted."""

    rollout_ess: float
    """Effective sample size of the rollouts: how many of them carry the weight."""
    num_judged: int = 0
    """Rollouts that have a verdict: the most that ``rollout_ess`` can be, where it is known."""
    largest_share: float
    """Largest share of the weight that a single rollout carries, 0 to 1."""
    selection_error: float
    """Expected total-variation distance, from the rollouts' noise, to the selection with exact energies; 0 to 1."""
    ratio_ess: float | None = None
    """Effective sample size of the importance weights of a proposal's rollouts; None without any."""
    num_ratios: int = 0
    """Rollouts that have an importance weight: the most that ``ratio_ess`` can be."""
    pareto_k: float | None = None
    """Shape of the upper tail of the importance weights; None for less than 25 of them."""
    verdict: str | None = None
    """What is wrong with the proposal, in words; None if nothing is."""


class StepTrace(_Record):
    """One step of ETS. Lists over candidates have one order, and length M, or that of all chains together."""

    step: int
    """Number of the step, from 1."""
    candidates: tuple[str, ...]
    """The text that each candidate adds to the response."""
    finished: tuple[bool, ...]
    """Whether the candidate is a complete response, whose energy is known exactly."""
    log_energies: tuple[float, ...]
    """Estimates of log E[exp(r / λ)] (nats, up to a constant of the step where λ = 0)."""
    log_energy_errors: tuple[float | None, ...]
    """Their standard errors (nats): 0 for a finished candidate, None where the energy is zero or unknown."""
    weights: tuple[float, ...]
    """Self-normalized weights; they sum to 1."""
    ess: float
    """Effective sample size of the weights, 1 to their number."""
    chosen: int
    """Index of the candidate that was drawn; with several chains, the one on which the most weight stands, and at the
    end that of the chain whose answer was drawn."""
    chains: tuple[int, ...] = ()
    """Number of the chain, from 0, that each candidate continues."""
    kept: tuple[int, ...] = ()
    """Index of the candidate that each chain goes on from."""
    resampled: bool = False
    """Whether the chains were drawn anew from all candidates; otherwise each went on with one of its own."""
    num_rollouts: int = 0
    """Rollouts that were drawn for each unfinished candidate."""
    diagnostics: Diagnostics
    """How far the weights can be trusted."""
    rollouts: tuple[tuple[RolloutTrace, ...], ...]
    """The responses behind each estimate; a finished candidate's is itself."""
    fallback: Fallback | None = None
    """Why the weights are uniform, where they had to be."""
    dropped: int = 0
    """Rollouts without a verdict, left out of the estimates."""


class Usage(_Record):
    """What a run cost."""

    prompt_tokens: int | None = None
    """Tokens of the prompt; None where the model does not tell. Not part of the total."""
    response_tokens: int | None = None
    """Tokens of the response, which are among those that were drawn; None where that is not known."""
    candidate_tokens: int = 0
    """Tokens drawn as candidates."""
    rollout_tokens: int = 0
    """Tokens drawn as rollouts, by the proposal where there is one."""
    scoring_tokens: int = 0
    """Tokens of a proposal's rollouts that the reference scored (importance weights)."""
    saved_tokens: int = 0
    """Tokens that the rollouts left out by ``num_rollouts=(low, high)`` would have cost, scoring included: their number
    times the mean of those that were drawn for the same candidate. Not part of the total."""
    seconds: float = 0.0
    """Wall time of the run."""

    @property
    def total_tokens(self) -> int:
        """All tokens drawn or scored."""
        return self.candidate_tokens + self.rollout_tokens + self.scoring_tokens


class Result(_Record):
    """A guided completion."""

    text: str
    """The response."""
    answer: str | None
    """The final answer that the reward reads in it."""
    reward: float | None
    """Its reward in the last step's group; None where there was no verdict."""
    finish_reason: Literal["stop", "length", "timeout", "budget"]
    """Why it ended; ``timeout`` and ``budget`` (a backend's tokens are used up) mean that the run was cut short."""
    steps: tuple[StepTrace, ...]
    """One trace per step."""
    usage: Usage
    """Tokens and seconds."""
    seed: int
    """The same seed, settings and model give the same response, where the backend can seed."""
    log_normalizer: float | None = None
    """Estimate of log E_ref[exp(r / λ)] (nats) from the first step's candidates and their first round of rollouts; None
    for λ = 0 and where nothing was judged."""
    log_normalizer_error: float | None = None
    """Its standard error (nats), where one can be given."""
    model: str
    """Name of the reference model."""
    proposal: str | None = None
    """Name of the model that drew the rollouts, where it is another."""
    config: ETSConfig
    """The settings of the run."""
    warnings: list[str] = []
    """What went wrong on the way without ending the run."""

    @property
    def cut_short(self) -> bool:
        """Whether the run ended before its last step, by a deadline or a token budget."""
        return self.finish_reason in ("timeout", "budget")


class StepStarted(_Record):
    """A step begins."""

    type: Literal["step_started"] = "step_started"
    step: int
    """Number of the step, from 1."""
    num_steps: int
    """Steps at most; a response that ends early needs fewer."""
    text: str
    """The response so far."""


class CandidatesWeighed(_Record):
    """A step's candidates have their weights, and one of them was drawn."""

    type: Literal["candidates_weighed"] = "candidates_weighed"
    trace: StepTrace
    """Everything about the step."""


class BlockCommitted(_Record):
    """The chosen candidate's block is part of the response now; it will not change any more."""

    type: Literal["block_committed"] = "block_committed"
    step: int
    """Number of the step, from 1."""
    delta: str
    """The text that was added."""
    text: str
    """The response so far."""


class Warned(_Record):
    """Something went wrong that did not end the run."""

    type: Literal["warned"] = "warned"
    step: int
    """Number of the step, from 1."""
    message: str
    """What happened."""


class Finished(_Record):
    """The run is over; always the last event."""

    type: Literal["finished"] = "finished"
    result: Result
    """What `ETS.complete` returns."""


Event = Annotated[StepStarted | CandidatesWeighed | BlockCommitted | Warned | Finished, Field(discriminator="type")]
"""What `ETS.stream` yields, in this order in every step: started, warned (if need be), weighed, committed."""
