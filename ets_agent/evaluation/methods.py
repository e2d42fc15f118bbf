"""The ways of answering that an evaluation compares. A new one is a class with `solve` and a line in `METHODS`."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from backends import Backend, BackendError, Prompt
from ets_agent.config import ETSConfig
from ets_agent.errors import ConfigError
from ets_agent.evaluation.statistics import mean_of_known
from ets_agent.results import StepTrace
from ets_agent.sampler import ETS
from rewards import Reward


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A response to one problem.

    Attributes:
        text: The response.
        tokens: What it cost, in tokens drawn or scored.
        ess: Effective sample size of the candidates as a share of their number, mean over the steps; None where there
            are no steps.
        ratio_ess: The same of the importance weights of a proposal's rollouts, over the steps that have any.
    """

    text: str
    tokens: int
    ess: float | None = None
    ratio_ess: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a method is made from.

    Attributes:
        backend: The reference model.
        reward: Guides or selects, where the method does either.
        config: Settings; a method may narrow them.
        proposal: A cheaper model for the rollouts, for methods that use one.
        samples: Complete responses per problem, for methods that draw a fixed number; None leaves it to the method.
    """

    backend: Backend
    reward: Reward
    config: ETSConfig
    proposal: Backend | None = None
    samples: int | None = None


class Method(Protocol):
    """Answers problems, any number of them concurrently."""

    uses_reward: ClassVar[bool]
    """Whether the reward has a say."""
    uses_proposal: ClassVar[bool]
    """Whether it needs a proposal."""
    uses_samples: ClassVar[bool]
    """Whether it draws a number of responses that can be set."""

    def __init__(self, setup: Setup, /) -> None:
        """Make the method from what it uses of a setup; `make` sees to it that there is nothing else.

        Raises:
            ConfigError: The settings do not suit it.
            backends.BackendError: The models do not suit it.
        """
        ...

    @property
    def config(self) -> ETSConfig:
        """The settings of a run, as this method made them."""
        ...

    async def solve(self, prompt: Prompt, *, seed: int) -> Solution:
        """Return a response that is determined by the prompt and the seed."""
        ...


class Base:
    """The model alone: one response, drawn from p_ref."""

    uses_reward: ClassVar[bool] = False
    uses_proposal: ClassVar[bool] = False
    uses_samples: ClassVar[bool] = False

    def __init__(self, setup: Setup, /) -> None:
        """Narrow the settings to a single response."""
        self.config = setup.config.replace(num_candidates=1, num_rollouts=1, num_steps=1, num_chains=1)
        self._backend = setup.backend

    async def solve(self, prompt: Prompt, *, seed: int) -> Solution:
        """Draw one response."""
        limit = self.config.max_tokens
        async with asyncio.timeout(self.config.timeout):
            start = await self._backend.begin(prompt, max_tokens=limit, params=self.config.sampling)
            [state] = await self._backend.extend(start, 1, tokens=limit, seed=seed)
        if state.finish_reason == "error":
            raise BackendError(f"{self._backend.name} failed to draw a response")
        return Solution(text=state.text, tokens=state.num_tokens)


class Guided:
    """ETS (Algorithm 1 of the paper): candidates and rollouts from one model."""

    uses_reward: ClassVar[bool] = True
    uses_proposal: ClassVar[bool] = False
    uses_samples: ClassVar[bool] = False

    def __init__(self, setup: Setup, /) -> None:
        """Make the sampler."""
        self._sampler = ETS(setup.backend, setup.reward, setup.proposal, config=setup.config)

    @property
    def config(self) -> ETSConfig:
        """The settings as they were given."""
        return self._sampler.config

    async def solve(self, prompt: Prompt, *, seed: int) -> Solution:
        """Draw one guided response."""
        result = await self._sampler.complete(prompt, seed=seed)
        return Solution(
            text=result.text,
            tokens=result.usage.total_tokens,
            ess=mean_of_known(step.ess / len(step.weights) for step in result.steps),
            ratio_ess=mean_of_known(_ratio_ess(step) for step in result.steps),
        )


class GuidedByProposal(Guided):
    """ETS-IS (Algorithm 2 of the paper): the rollouts come from the proposal and count with importance weights."""

    uses_proposal: ClassVar[bool] = True


class BestOfN(Guided):
    """N complete responses, of which the reward picks one: ETS in a single step in the limit λ → 0.

    N is M·K, times the chains: as many complete responses as one step of ETS looks at, at most. The setup may say
    otherwise. Under self-consistency the pick is a majority vote.
    """

    uses_samples: ClassVar[bool] = True

    def __init__(self, setup: Setup, /) -> None:
        """Narrow the settings to one step of complete responses."""
        given = setup.config
        most = given.num_candidates * sum(given.rollout_rounds) * given.num_chains
        count = most if setup.samples is None else setup.samples
        config = given.replace(num_candidates=count, num_rollouts=1, num_steps=1, num_chains=1, kl_coef=0.0)
        super().__init__(dataclasses.replace(setup, config=config))


METHODS: dict[str, type[Method]] = {"base": Base, "best_of_n": BestOfN, "ets": Guided, "ets_is": GuidedByProposal}
"""Methods by name."""


def check_methods(names: Sequence[str], *, proposal: bool, samples: int | None = None) -> None:
    """Refuse methods that are to run together, if one is unknown or lacks something, or if something is for none.

    Args:
        names: Of the methods.
        proposal: Whether there is a proposal.
        samples: As in `Setup`.

    Raises:
        ConfigError: The message says what is allowed.
    """
    together = " or ".join(dict.fromkeys(names))
    for name in names:
        if name not in METHODS:
            raise ConfigError(f"there is no method {name!r}; allowed: {', '.join(METHODS)}")
        if METHODS[name].uses_proposal and not proposal:
            raise ConfigError(
                f"method {name} needs a proposal, --proposal on the command line or proposal= in Python: "
                "a smaller model with the tokenizer of the reference"
            )
    if proposal and not any(METHODS[name].uses_proposal for name in names):
        takers = [name for name, method in METHODS.items() if method.uses_proposal]
        raise ConfigError(f"method {together} takes no proposal; allowed: with {', '.join(takers)}")
    if samples is not None and samples < 1:
        raise ConfigError(f"n is {samples}; allowed: at least 1")
    if samples is not None and not any(METHODS[name].uses_samples for name in names):
        takers = [name for name, method in METHODS.items() if method.uses_samples]
        raise ConfigError(f"n is {samples}, but method {together} does not take it; allowed: with {', '.join(takers)}")


def make(name: str, setup: Setup) -> Method:
    """Return a method by name, made from what it uses of the setup.

    Raises:
        ConfigError: The settings do not suit it.
        backends.BackendError: The models do not suit it.
    """
    method = METHODS[name]
    if not method.uses_proposal:
        setup = dataclasses.replace(
            setup, proposal=None, config=setup.config.replace(proposal_temperature=None, estimator="unbiased")
        )
    if not method.uses_samples:
        setup = dataclasses.replace(setup, samples=None)
    return method(setup)


def _ratio_ess(step: StepTrace) -> float | None:
    found = step.diagnostics
    return None if found.ratio_ess is None else found.ratio_ess / found.num_ratios
