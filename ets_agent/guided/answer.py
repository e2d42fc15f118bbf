"""What an agent gets: the answer, how sure the search was of it, and what it cost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, WithJsonSchema

from ets_agent.confidence import confidence
from ets_agent.results import Result, Usage

_JSON_REWARD = {"anyOf": [{"type": "number"}, {"const": "-Infinity"}]}
"""A reward may be minus infinity, for which JSON has no number."""


class GuidedAnswer(BaseModel):
    """The answer to a `GuidedRequest`."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", use_attribute_docstrings=True)

    answer: str | None
    """The final answer that the reward reads in the text; None where it reads none."""
    text: str
    """The whole response."""
    confidence: float | None
    """The share of weight behind the answer, 0 to 1: of all complete responses by which candidates were judged, those
    that end in this answer (the same text, where no answer is read), by their weights, averaged over the steps. How
    an answer is written does not matter as far as `rewards.canonical` sees through it, as in 0.5 and 1/2. It says how
    much the search agreed with itself under this reward. It is no probability of being right: a model that is wrong in
    one way gets high confidence, too. None where nothing was weighed."""
    reward: Annotated[float, WithJsonSchema(_JSON_REWARD, mode="serialization")] | None
    """The reward of the response; None where there was no verdict."""
    cut_short: bool
    """Whether a deadline or token budget ended the search; this is then the best answer that there was."""
    finish_reason: Literal["stop", "length", "timeout", "budget"]
    """Why it ended: by itself, at ``max_tokens``, by the deadline, or by a token budget."""
    usage: Usage
    """Tokens and seconds."""
    seed: int | None
    """The seed of the run; None where it had no place before its time was over, so that no seed was drawn for it."""
    model: str
    """Name of the model."""
    trace_id: str
    """Names the run: in logs, and as name of its trace where traces are kept."""
    warnings: tuple[str, ...] = ()
    """What went wrong on the way without ending the run."""

    @classmethod
    def of(cls, result: Result, *, trace_id: str) -> GuidedAnswer:
        """Return the answer in a result."""
        return cls(
            answer=result.answer,
            text=result.text,
            confidence=confidence(result),
            reward=result.reward,
            cut_short=result.cut_short,
            finish_reason=result.finish_reason,
            usage=result.usage,
            seed=result.seed,
            model=result.model,
            trace_id=trace_id,
            warnings=tuple(result.warnings),
        )
