"""What an evaluation gives back: one record per problem and the figures that follow from them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, computed_field

from ets_agent.config import ETSConfig
from ets_agent.evaluation.statistics import Interval, wilson_interval


class ItemRecord(BaseModel):
    """One problem and what became of it."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    index: int
    """Place of the problem in the list, from 0."""
    question: str
    """The problem."""
    gold: str
    """The right answer."""
    text: str | None
    """The response; None where there is none because of an error."""
    answer: str | None
    """The final answer read in the response; None where it states none."""
    correct: bool
    """Whether the answer equals the right one in canonical form; an error counts as wrong."""
    error: str | None = None
    """What went wrong, if anything did."""
    tokens: int = 0
    """Tokens drawn or scored for this problem; 0 after an error, whose tokens are unknown."""
    seed: int
    """Seed of this problem's run."""


class EvalReport(BaseModel):
    """The outcome of one method on a list of problems; survives a JSON round trip, derived figures included."""

    # The derived figures are in the JSON for its readers; reading it back they are ignored and derived anew.
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    benchmark: str | None = None
    """Name of the problem set."""
    method: str
    """Name of the method, a key of `METHODS`."""
    model: str
    """Name of the reference model."""
    reward: str | None = None
    """Name of the reward that guided or selected; None where the method uses none."""
    seed: int
    """Seed of the evaluation."""
    config: ETSConfig
    """The settings of every run, as the method made them."""
    seconds: float
    """Wall time of the evaluation."""
    items: tuple[ItemRecord, ...]
    """One record per problem, in order."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def count(self) -> int:
        """Number of problems."""
        return len(self.items)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def correct(self) -> int:
        """Number of problems answered correctly."""
        return sum(item.correct for item in self.items)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def errors(self) -> int:
        """Number of problems that ended in an error; they count as wrong."""
        return sum(item.error is not None for item in self.items)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def accuracy(self) -> float:
        """Share of problems answered correctly; 0 where there are none."""
        return self.correct / self.count if self.items else 0.0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def interval(self) -> Interval:
        """95 % Wilson interval of the accuracy."""
        return wilson_interval(self.correct, self.count)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def tokens(self) -> int:
        """Tokens of all problems together."""
        return sum(item.tokens for item in self.items)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def tokens_per_problem(self) -> float:
        """Mean tokens of the problems that ended without an error; 0 where there are none."""
        finished = self.count - self.errors
        return self.tokens / finished if finished else 0.0
