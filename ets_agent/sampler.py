"""`ETS`, the sampler: what agents and people call."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import backends
import rewards
from backends import Backend, CapabilityError, Prompt
from backends.concurrency import FirstFailure, cancellation_asked
from backends.contract import is_count, row_seeds
from backends.turns import take_turn
from ets_agent._closing import Closing
from ets_agent._proposal import check_proposal_settings, check_same_tokens, check_weighing
from ets_agent._run import Run
from ets_agent.config import ETSConfig
from ets_agent.errors import ConfigError
from ets_agent.results import Event, Finished, Result
from rewards import Reward, RewardSpec

DEFAULT_CONCURRENCY = 16
_BEGUN_TOGETHER = 64


class ETS:
    """Energy-Guided Test-Time Scaling: samples from p*(x | y) ∝ p_ref(x | y) · exp(r(y, x) / λ), without training.

    Algorithm 1 of arXiv 2601.21484: in each of I steps draw M candidate blocks from the model, estimate each one's
    energy E[exp(r / λ)] from K rollouts, and draw one by self-normalized weights. With a proposal, Algorithm 2
    (ETS-IS): the rollouts come from the cheaper model and count with importance weights.

        ets = ETS("tiny/qwen3", "self_consistency", num_candidates=8, num_rollouts=4, max_tokens=64)
        result = await ets.complete("Ada has 12 apples. …")

    One object serves any number of concurrent calls. It closes backends that it loaded itself, by name, in `aclose`
    or at the end of ``async with``; a backend handed to it stays open.

    Args:
        backend: The reference model, or its name for `backends.load`.
        reward: The reward, or its specification for `rewards.build`.
        proposal: A cheaper model for the rollouts, or its name; it must have the reference's tokenizer.
        config: Settings as one object, instead of or beneath ``settings``.
        **settings: Fields of `ETSConfig`.

    Raises:
        ConfigError: A setting is out of range; the message says what is allowed.
        backends.BackendError: A model cannot be loaded, or cannot do what the settings need.
        backends.TokenizerMismatchError: Reference and proposal do not have the same tokens.
        rewards.RewardError: There is no such reward.
    """

    def __init__(
        self,
        backend: Backend | str,
        reward: RewardSpec = "self_consistency",
        proposal: Backend | str | None = None,
        *,
        config: ETSConfig | None = None,
        **settings: Any,
    ) -> None:
        """Check the settings before a model is loaded, and the models before anything is drawn."""
        if config is not None and not isinstance(config, ETSConfig):
            raise ConfigError(f"config must be an ETSConfig, not {type(config).__name__}")
        if not isinstance(backend, str | Backend):
            raise ConfigError(f"backend must be a Backend or a model's name, not {type(backend).__name__}")
        if not isinstance(proposal, str | Backend | None):
            raise ConfigError(f"proposal must be a Backend, a model's name or None, not {type(proposal).__name__}")
        self._config = config.replace(**settings) if config is not None else ETSConfig.build(**settings)
        check_proposal_settings(self._config, proposal=proposal is not None)
        self._reward = rewards.build(reward)
        self._owns_reward = self._reward is not reward
        self._owned: list[Backend] = []
        self._closing = Closing()
        self._backend = self._opened(backend)
        self._proposal = None if proposal is None else self._opened(proposal)
        if self._proposal is not None:
            check_same_tokens(self._backend, self._proposal)
        self._check(self._config, self._reward)

    @property
    def config(self) -> ETSConfig:
        """The settings; each call may override them."""
        return self._config

    @property
    def backend(self) -> Backend:
        """The reference model."""
        return self._backend

    @property
    def proposal(self) -> Backend | None:
        """The model that draws the rollouts, where it is another."""
        return self._proposal

    async def complete(self, prompt: Prompt, *, reward: RewardSpec | None = None, **overrides: Any) -> Result:
        """Return one guided completion.

        Cancelling the call ends all of its work. A deadline (``timeout=``, seconds) does not raise: the result then is
        the best-weighted complete answer so far, marked by ``finish_reason == "timeout"``.

        Args:
            prompt: Text, continued as it stands, or chat messages.
            reward: A reward for this call only.
            **overrides: Settings for this call only.

        Raises:
            ConfigError: A setting is out of range.
            backends.PromptError: The prompt is empty or too long for the model's context.
            backends.BackendError: The model failed.
        """
        await take_turn()
        run, own = self._run(prompt, reward, overrides)
        try:
            async with aclosing(run.events()) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        return event.result
        finally:
            if own is not None:
                await self._closing.close(own)
        raise AssertionError("a run ends with Finished")

    def stream(self, prompt: Prompt, *, reward: RewardSpec | None = None, **overrides: Any) -> AsyncGenerator[Event]:
        """Return the events of one run while it goes on; arguments and errors as for `complete`.

        Nothing runs between events, so leaving the loop early leaves nothing behind.
        """
        return self._events(*self._run(prompt, reward, overrides))

    async def complete_many(
        self,
        prompts: Sequence[Prompt],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        on_result: Callable[[int, Result | Exception], None] | None = None,
        reward: RewardSpec | Sequence[RewardSpec] | None = None,
        **overrides: Any,
    ) -> list[Result | Exception]:
        """Complete many prompts, so many at a time; a failure is that item's result and never the batch's.

        Item i runs with its own seed, a function of the run's seed and i, whatever the concurrency.

        Args:
            prompts: Prompts, as for `complete`.
            concurrency: Most runs at the same time.
            on_result: Called with (index, result) as each one ends, for progress; its error ends the batch.
            reward: One reward for all, or a list with one for each prompt.
            **overrides: Settings for this call only.

        Raises:
            ConfigError: A setting is out of range.
        """
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            raise ConfigError(f"prompts must be a list of prompts, not {type(prompts).__name__}")
        if not is_count(concurrency, 1):
            raise ConfigError(f"concurrency is {concurrency!r}; allowed: a whole number of at least 1")
        config = self._config.replace(**overrides)
        specs = (
            list(reward) if isinstance(reward, Sequence) and not isinstance(reward, str) else [reward] * len(prompts)
        )
        if len(specs) != len(prompts):
            raise ConfigError(f"there are {len(prompts)} prompts but {len(specs)} rewards")
        seeds = item_seeds(secrets.randbits(48) if config.seed is None else config.seed, len(prompts))
        results: dict[int, Result | Exception] = {}
        places = asyncio.Semaphore(concurrency)

        async def run(index: int) -> None:
            async with places:
                try:
                    results[index] = await self.complete(
                        prompts[index], reward=specs[index], **overrides | {"seed": seeds[index]}
                    )
                except Exception as error:  # Whatever it was, it is this item's result.
                    results[index] = error
                except asyncio.CancelledError as error:
                    if cancellation_asked():
                        raise
                    results[index] = _as_failure(error)
                if on_result is not None:
                    on_result(index, results[index])

        async with FirstFailure() as group:
            for index in range(len(prompts)):
                group.create_task(run(index))
                if index % _BEGUN_TOGETHER == _BEGUN_TOGETHER - 1:
                    await asyncio.sleep(0)  # Thousands that all begin in one round of the loop would hold others up.
        return [results[index] for index in range(len(prompts))]

    def complete_sync(self, prompt: Prompt, *, reward: RewardSpec | None = None, **overrides: Any) -> Result:
        """Return one guided completion from a script that has no event loop; arguments and errors as for `complete`.

        Raises:
            RunningLoopError: An event loop is running in this thread; await `complete` there.
        """
        return self._closing.run(
            self.complete(prompt, reward=reward, **overrides),
            blocking="complete_sync",
            instead="await ets.complete(…)",
        )

    async def aclose(self) -> None:
        """Close what was made here from a name or specification; harmless when called twice."""
        await self._closing.wait()
        if self._owns_reward:
            await self._reward.aclose()
        for backend in self._owned:
            await backend.aclose()

    async def __aenter__(self) -> Self:
        """Return the sampler itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()

    def _run(
        self, prompt: Prompt, reward: RewardSpec | None, overrides: Mapping[str, Any]
    ) -> tuple[Run, Reward | None]:
        """Return a run, and the reward to close after it if it was made for this run alone."""
        config = self._config.replace(**overrides) if overrides else self._config
        judge = self._reward if reward is None else rewards.build(reward)
        self._check(config, judge)
        seed = secrets.randbits(48) if config.seed is None else config.seed
        own = judge is not self._reward and judge is not reward
        run = Run(self._backend, judge, config, prompt, seed, proposal=self._proposal)
        return run, judge if own else None

    async def _events(self, run: Run, own: Reward | None) -> AsyncGenerator[Event]:
        """Yield a run's events, and close the reward that was made for it alone."""
        try:
            async with aclosing(run.events()) as events:
                async for event in events:
                    yield event
        finally:
            if own is not None:
                await self._closing.close(own)

    def _opened(self, backend: Backend | str) -> Backend:
        if not isinstance(backend, str):
            return backend
        opened = backends.load(backend)
        self._owned.append(opened)
        return opened

    def _check(self, config: ETSConfig, reward: Reward) -> None:
        """Refuse settings and rewards that the models cannot serve."""
        if reward.needs and self._proposal is not None:
            raise CapabilityError(
                f"reward {reward.label!r} judges by what the reference says of a response, but the rollouts come from "
                "a proposal: leave the proposal out, or take another reward"
            )
        for capability in sorted(reward.needs):
            if not getattr(self._backend.capabilities, capability):
                raise CapabilityError(
                    f"reward {reward.label!r} needs {capability}, which {self._backend.name} cannot give"
                )
        check_proposal_settings(config, proposal=self._proposal is not None)
        if self._proposal is not None:
            check_weighing(config, self._backend, self._proposal)
        for model in (self._backend, self._proposal):
            if model is not None and len(config.blocks) > 1 and not model.capabilities.continue_prefix:
                raise CapabilityError(
                    f"{model.name} cannot continue a prefix, so only num_steps=1 is possible, "
                    f"not {len(config.blocks)} steps"
                )


def _as_failure(error: asyncio.CancelledError) -> RuntimeError:
    failure = RuntimeError("something that the run waited for was cancelled, and not by its caller")
    failure.__cause__ = error
    return failure


def item_seeds(seed: int, count: int) -> list[int]:
    """Return one seed per item of a batch; below 2**53, so that every JSON reader keeps them."""
    return [row >> 11 for row in row_seeds(seed, count)]
