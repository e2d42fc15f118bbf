"""What an evaluation gives back: one record per problem and the figures that follow from them."""

from __future__ import annotations

from statistics import median

from pydantic import BaseModel, ConfigDict, computed_field

from ets_agent.config import ETSConfig
from ets_agent.evaluation.statistics import Interval, mean_of_known, wilson_interval


class ItemRecord(BaseModel):
    """One problem and what became of it."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    method: str
    """Name of the method that answered, a key of `METHODS`."""
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
    """Whether the answer has the value of the right one, however it is written; an error counts as wrong."""
    error: str | None = None
    """What went wrong, if anything did."""
    tokens: int = 0
    """Tokens drawn or scored for this problem; 0 after an error, whose tokens are unknown."""
    seconds: float
    """Wall time of this problem's run, in the company of those that ran at the same time."""
    ess: float | None = None
    """Effective sample size of the candidates as a share of their number, 0 to 1, mean over the steps; None for a
    method without candidates."""
    ratio_ess: float | None = None
    """The same of the importance weights of a proposal's rollouts, over the steps that have any."""
    seed: int
    """Seed of this problem's run."""


class EvalReport(BaseModel):
    """The outcome of one method on a list of problems, alone or against another; survives a JSON round trip.

    Derived figures are part of the JSON.
    """

    # The derived figures are in the JSON for its readers; reading it back they are ignored and derived anew.
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    benchmark: str | None = None
    """Name of the problem set."""
    method: str
    """Name of the method, a key of `METHODS`."""
    model: str
    """Name of the reference model."""
    proposal: str | None = None
    """Name of the model that drew the rollouts, where it is another."""
    reward: str | None = None
    """Name of the reward that guided or selected; None where the method uses none."""
    seed: int
    """Seed of the evaluation."""
    config: ETSConfig
    """The settings of every run, as the method made them."""
    chunk_seconds: tuple[float, ...]
    """Wall time of each chunk of problems, in order; a method that runs alone has all of them in one."""
    items: tuple[ItemRecord, ...]
    """One record per problem, in order."""
    against: EvalReport | None = None
    """The outcome of the method that ran in turn with this one, on the same problems in the same chunks."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def seconds(self) -> float:
        """Wall time of all problems, without that of another method."""
        return sum(self.chunk_seconds)

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

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ess(self) -> float | None:
        """Mean effective sample size of the candidates as a share of their number; None where there is none."""
        return mean_of_known(item.ess for item in self.items)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ratio_ess(self) -> float | None:
        """Mean effective sample size of the importance weights as a share of the rollouts; None without any."""
        return mean_of_known(item.ratio_ess for item in self.items)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def wall_time_ratio(self) -> float | None:
        """Wall time of this method over that of the other one, all chunks together; None without a comparison."""
        if self.against is None or not self.against.seconds:
            return None
        return self.seconds / self.against.seconds

    @computed_field  # type: ignore[prop-decorator]
    @property
    def median_chunk_ratio(self) -> float | None:
        """Median over the chunks of the same ratio, which a single disturbance does not move."""
        if self.wall_time_ratio is None or self.against is None or not all(self.against.chunk_seconds):
            return None
        return median(own / other for own, other in zip(self.chunk_seconds, self.against.chunk_seconds, strict=True))
