"""The settings of a run, checked when they are made."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from backends import SamplingParams
from ets_agent._validation import Float, Int, StopString, explain
from ets_agent.energy import Estimator
from ets_agent.errors import ConfigError

DEFAULT_NUM_STEPS = 4


def _as_tuple(value: Any) -> Any:
    """Return one text, or a list, as a tuple: in strict mode, a list that JSON came as would be none."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


StopStrings = Annotated[
    tuple[StopString, ...],
    BeforeValidator(_as_tuple, json_schema_input_type=StopString | tuple[StopString, ...]),
]


def _check_rollouts(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Say what is allowed in one sentence, where pydantic would report each member of the union."""
    given = tuple(value) if isinstance(value, list) else value
    try:
        found: int | tuple[int, int] = check(given)
    except ValidationError:
        found = 0
    if any(isinstance(number, bool) for number in (given if isinstance(given, tuple) else [given])):
        found = 0
    if min(found if isinstance(found, tuple) else (found,)) < 1 or (isinstance(found, tuple) and found[0] > found[1]):
        raise ValueError("allowed: a number of at least 1, or (low, high), at least 1 and in this order")
    return found


Rollouts = Annotated[int | tuple[int, int], WrapValidator(_check_rollouts)]


class ETSConfig(BaseModel):
    """Settings of ETS (Algorithms 1 and 2 of the paper), by the field's names.

    ``num_steps`` or ``block_size`` divides the token budget into steps; giving neither means four steps. Defaults are
    for interactive use; the paper ran 15 candidates and 3 rollouts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    num_candidates: Int = Field(default=8, ge=1)
    """M: candidate continuations per step."""
    num_rollouts: Rollouts = 4
    """K: rollouts per candidate, from which its energy is estimated; (low, high) begins with low and adds more only
    while the selection is uncertain."""
    num_steps: Int | None = Field(default=None, ge=1)
    """I: steps, of nearly equal length in tokens; 1 with kl_coef = 0 is Best-of-N."""
    block_size: Int | None = Field(default=None, ge=1)
    """B: tokens per step, instead of num_steps."""
    kl_coef: Float = Field(default=0.1, ge=0)
    """λ: small trusts the reward, large stays close to the model; 0 is the limit of the best rollouts only."""
    num_chains: Int = Field(default=1, ge=1)
    """N: chains that run together, their candidates weighed against each other; one of their answers is drawn."""
    ess_threshold: Float = Field(default=0.5, ge=0, le=1)
    """Several chains are resampled when the effective sample size of their weights falls below this share of N."""
    estimator: Estimator = "unbiased"
    """How importance weights of a proposal's rollouts enter: unbiased, truncated or self_normalized."""
    share_rollouts: bool = True
    """Identical candidates share their rollouts; False draws K for each copy, as in the paper, for more tokens."""
    temperature: Float = Field(default=1.0, ge=0)
    """Sampling temperature of candidates and rollouts."""
    top_p: Float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: keep the smallest set of tokens with this probability."""
    top_k: Int = Field(default=0, ge=0)
    """Keep this many most probable tokens; 0 keeps all."""
    proposal_temperature: Float | None = Field(default=None, gt=0)
    """Temperature at which a proposal samples, untruncated; without it, it samples as the reference does."""
    max_tokens: Int = Field(default=512, ge=1)
    """Budget of the response, in tokens."""
    stop: StopStrings = ()
    """Strings that end the response; not part of its text."""
    seed: Int | None = Field(default=None, ge=0)
    """Seed of the run; without one it is drawn, and the result reports it."""
    timeout: Float | None = Field(default=None, gt=0)
    """Seconds after which the best answer so far is returned."""

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if self.block_size is not None and self.block_size > self.max_tokens:
            raise ConfigError(
                f"block_size is {self.block_size}; allowed: 1 to max_tokens, which is {self.max_tokens}",
                setting="block_size",
            )
        if self.num_steps is not None and self.num_steps > self.max_tokens:
            raise ConfigError(
                f"num_steps is {self.num_steps}; allowed: 1 to max_tokens, which is {self.max_tokens}",
                setting="num_steps",
            )
        if self.num_steps is not None and self.block_size is not None:
            implied = -(-self.max_tokens // self.block_size)
            if implied != self.num_steps:
                raise ConfigError(
                    f"num_steps is {self.num_steps}, but block_size {self.block_size} of max_tokens {self.max_tokens} "
                    f"makes {implied} steps; give one of the two",
                    setting="num_steps",
                )
        return self

    @property
    def blocks(self) -> list[int]:
        """Tokens of each step; they add up to ``max_tokens``."""
        if self.block_size is not None:
            full, rest = divmod(self.max_tokens, self.block_size)
            return [self.block_size] * full + [rest] * (rest > 0)
        steps = self.num_steps or min(DEFAULT_NUM_STEPS, self.max_tokens)
        bounds = [self.max_tokens * step // steps for step in range(steps + 1)]
        return [end - start for start, end in pairwise(bounds)]

    @property
    def sampling(self) -> SamplingParams:
        """The part of the settings that defines p_ref."""
        return SamplingParams(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, stop=self.stop)

    @property
    def proposal_sampling(self) -> SamplingParams:
        """What a proposal samples with: the temperature of its own without truncation, else as the reference."""
        if self.proposal_temperature is None:
            return self.sampling
        return SamplingParams(temperature=self.proposal_temperature, stop=self.stop)

    @property
    def rollout_rounds(self) -> list[int]:
        """Rollouts per candidate to draw in each round; each round doubles what is there, up to the limit."""
        if not isinstance(self.num_rollouts, tuple):
            return [self.num_rollouts]
        low, high = self.num_rollouts
        totals = [low]
        while totals[-1] < high:
            totals.append(min(2 * totals[-1], high))
        return [low, *(more - fewer for fewer, more in pairwise(totals))]

    @classmethod
    def build(cls, **settings: Any) -> ETSConfig:
        """Return checked settings.

        Raises:
            ConfigError: Something is not allowed; the message names each setting, its value and the allowed range.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            message = explain(error, cls, what="setting")
            raise ConfigError(message, setting=_first_setting(error)) from None

    def replace(self, **changes: Any) -> ETSConfig:
        """Return the settings with some of them changed, checked again.

        A new ``num_steps`` or ``block_size`` takes the place of the other.

        Raises:
            ConfigError: As for `build`.
        """
        settings = self.model_dump(exclude_unset=True)
        if changes.get("num_steps") is not None and "block_size" not in changes:
            settings.pop("block_size", None)
        if changes.get("block_size") is not None and "num_steps" not in changes:
            settings.pop("num_steps", None)
        return type(self).build(**settings | changes)


def _first_setting(error: ValidationError) -> str | None:
    problem = error.errors(include_url=False)[0]
    if problem["loc"]:
        return str(problem["loc"][0])
    cause = problem.get("ctx", {}).get("error")
    return cause.setting if isinstance(cause, ConfigError) else None
