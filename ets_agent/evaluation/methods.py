"""The ways of answering that an evaluation compares. A new one is a class with `solve` and a line in `METHODS`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from backends import Backend, BackendError, Prompt
from ets_agent.config import ETSConfig
from ets_agent.errors import ConfigError
from ets_agent.sampler import ETS
from rewards import Reward


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A response to one problem.

    Attributes:
        text: The response.
        tokens: What it cost, in tokens drawn or scored.
    """

    text: str
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a method is made from.

    Attributes:
        backend: The reference model.
        reward: Guides or selects, where the method does either.
        config: Settings; a method may narrow them.
        samples: Complete responses per problem, for methods that draw a fixed number; None leaves it to the method.
    """

    backend: Backend
    reward: Reward
    config: ETSConfig
    samples: int | None = None


class Method(Protocol):
    """Answers problems, any number of them concurrently."""

    uses_reward: bool
    """Whether the reward has a say."""

    @property
    def config(self) -> ETSConfig:
        """The settings of a run, as this method made them."""
        ...

    async def solve(self, prompt: Prompt, *, seed: int) -> Solution:
        """Return a response that is determined by the prompt and the seed."""
        ...


class MethodFactory(Protocol):
    """Makes a method, or raises `ConfigError` or `BackendError` if the setup does not suit it."""

    def __call__(self, setup: Setup, /) -> Method:
        """Return the method."""
        ...


class Base:
    """The model alone: one response, drawn from p_ref."""

    uses_reward = False

    def __init__(self, setup: Setup) -> None:
        """Narrow the settings to a single response."""
        _refuse_samples(setup, "base")
        self.config = setup.config.replace(num_candidates=1, num_rollouts=1, num_steps=1)
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
    """ETS (Algorithm 1 of the paper)."""

    uses_reward = True

    def __init__(self, setup: Setup) -> None:
        """Make the sampler."""
        _refuse_samples(setup, "ets")
        self._sampler = ETS(setup.backend, setup.reward, config=setup.config)

    @property
    def config(self) -> ETSConfig:
        """The settings as they were given."""
        return self._sampler.config

    async def solve(self, prompt: Prompt, *, seed: int) -> Solution:
        """Draw one guided response."""
        result = await self._sampler.complete(prompt, seed=seed)
        return Solution(text=result.text, tokens=result.usage.total_tokens)


class BestOfN(Guided):
    """N complete responses, of which the reward picks one: ETS in a single step in the limit λ → 0.

    N is M·K, which is how many complete responses one step of ETS looks at, unless the setup says otherwise. Under
    self-consistency the pick is a majority vote.
    """

    def __init__(self, setup: Setup) -> None:
        """Narrow the settings to one step of complete responses."""
        count = setup.samples if setup.samples is not None else setup.config.num_candidates * setup.config.num_rollouts
        config = setup.config.replace(num_candidates=count, num_rollouts=1, num_steps=1, kl_coef=0.0)
        super().__init__(Setup(backend=setup.backend, reward=setup.reward, config=config))


METHODS: dict[str, MethodFactory] = {"base": Base, "best_of_n": BestOfN, "ets": Guided}
"""Methods by name."""


def _refuse_samples(setup: Setup, name: str) -> None:
    if setup.samples is not None:
        raise ConfigError(f"n is {setup.samples}, but method {name} does not take it; allowed: with best_of_n")
