"""What an operator lets agents ask for: which rewards, with which arguments, and how much of everything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import inf
from typing import Any

import rewards
from ets_agent.config import ETSConfig
from ets_agent.errors import ConfigError
from ets_agent.guided.request import EFFORTS, GuidedRequest, RequestError
from ets_agent.guided.strict import sayable
from rewards import RewardError, RewardParameter, RewardSpec, RewardSpecError

DEFAULT_REWARDS = ("self_consistency", "json_schema", "regex", "similarity")
"""What agents may choose from unless the operator says otherwise: nothing that runs code, calls a model or knows the
right answer."""

MAX_STOPS = 16
"""Stop strings that callers may give."""
MAX_STOP_CHARS = 256
"""Characters of each."""

_CALLER_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "choice": ("gold", "options"),
    "code_consistency": ("inputs", "prompt", "entry_point"),
    "code_tests": ("test", "prompt", "entry_point"),
    "exact_match": ("gold", "ignore_case"),
    "json_schema": ("schema",),
    "llm_judge": ("rubric",),
    "math_answer": ("gold",),
    "regex": ("pattern", "ignore_case", "full"),
    "self_consistency": ("extractor",),
}
"""What callers may say of a reward that is offered by its name alone. Sandboxes, models, limits and rewards within
rewards are the operator's: an agent that could name a model or a nested reward could have anything run."""


@dataclass(frozen=True, kw_only=True)
class RewardOffer:
    """A reward that agents may ask for.

    Attributes:
        name: What agents call it.
        reward: What it is: a registered reward's name, a mapping with the name and arguments that callers cannot
            change, both of which are built for each run and closed after it, or a reward, which all runs share. By
            default the registered reward called ``name``.
        arguments: Names of the arguments that callers may give. By default, for a built-in reward, those that are about
            the task: tests, a schema, a pattern, a rubric. Where the operator fixes the first of these, the task is the
            operator's, and none is the callers'.
        description: What agents are told of it; by default what the reward says of itself.
    """

    name: str
    reward: RewardSpec | None = None
    arguments: tuple[str, ...] | None = None
    description: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.arguments and self._registered is None:
            raise ConfigError(f"reward {self.name!r} is no registered reward, so callers cannot give arguments")
        if self._registered is not None:
            registered, fixed = self._registered
            twice = [name for name in self.arguments or () if name in fixed]
            if twice:
                raise ConfigError(f"reward {self.name!r} has a fixed {twice[0]!r}, so callers cannot give it")
            takes = self._parameters.keys() - {"name"}
            unknown = [name for name in (*fixed, *(self.arguments or ())) if name not in takes]
            if unknown:
                allowed = ", ".join(sorted(takes)) or "none"
                raise ConfigError(f"reward {self.name!r} has no argument {unknown[0]!r}; allowed: {allowed}")
            missing = [name for name in self._required if name not in (*fixed, *self.caller_arguments)]
            if missing:
                raise ConfigError(
                    f"reward {self.name!r} needs {missing[0]!r}, which callers cannot give; fix it, as in "
                    f"{registered}:{missing[0]}=…"
                )
            try:
                rewards.check({**fixed, "name": registered}, besides=self.needs)
            except RewardSpecError as error:
                raise ConfigError(f"reward {self.name!r}: {error.problem}") from error

    @property
    def needs(self) -> tuple[str, ...]:
        """Arguments that callers have to give."""
        return tuple(name for name in self.caller_arguments if name in self._required)

    @property
    def caller_arguments(self) -> tuple[str, ...]:
        """Names of the arguments that callers may give."""
        if self.arguments is not None:
            return self.arguments
        registered = self._registered
        if registered is None:
            return ()
        name, fixed = registered
        about_the_task = _CALLER_ARGUMENTS.get(name, ())
        if about_the_task and about_the_task[0] in fixed:
            return ()
        return tuple(argument for argument in about_the_task if argument not in fixed)

    @property
    def summary(self) -> str:
        """What agents are told."""
        if self.description or self._registered is None:
            return self.description
        return rewards.describe(self._registered[0]).summary

    @cached_property
    def schemas(self) -> dict[str, dict[str, Any]]:
        """JSON schemas of the arguments that callers may give."""
        if self._registered is None:
            return {}
        known = rewards.argument_schemas(self._registered[0])
        return {name: known.get(name, {}) for name in self.caller_arguments}

    def spec(self, given: Mapping[str, Any]) -> RewardSpec:
        """Return the reward with a caller's arguments, as whoever runs it builds it, and closes it afterwards.

        Raises:
            RequestError: An argument is not allowed.
        """
        allowed = self.caller_arguments
        refused = [name for name in given if name not in allowed]
        if refused:
            raise RequestError(
                f"reward {self.name!r} takes no argument {refused[0]!r} here; allowed: {', '.join(allowed) or 'none'}",
                field="reward",
            )
        if self._registered is None:
            assert self.reward is not None
            return self.reward
        name, fixed = self._registered
        arguments = {key: self._plain(key, value) for key, value in given.items() if value is not None}
        spec = {**fixed, **arguments, "name": name}  # In this order: no argument may turn it into another reward.
        try:
            rewards.check(spec)
        except RewardSpecError as error:
            # Under the offer's own name, and only with those arguments that callers may give.
            takes = ", ".join(self._parameters[each].declaration for each in allowed) or "no arguments"
            problem = self._problem(arguments, error)
            raise RequestError(f"reward {self.name!r}: {problem} (it takes: {takes})", field="reward") from error
        except RewardError as error:
            raise RequestError(str(error), field="reward") from error
        return spec

    def _problem(self, arguments: Mapping[str, Any], error: RewardSpecError) -> str:
        """Return what is wrong with a caller's arguments, without a word of those that are fixed."""
        assert self._registered is not None
        name, fixed = self._registered
        if not fixed:
            return error.problem
        try:
            rewards.check({**arguments, "name": name}, besides=fixed)
        except RewardSpecError as own:
            return own.problem
        return "these arguments do not go with what is fixed here"

    def _plain(self, name: str, value: Any) -> Any:
        """Return what came as JSON text because strict mode cannot say it, such as an object with free names."""
        schema = self.schemas.get(name, {})
        if not isinstance(value, str) or sayable(schema):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            if not {"type", "anyOf", "$ref"} & schema.keys():  # Of no known type, so text may be what was meant.
                return value
            raise RequestError(f"{name} of reward {self.name!r} is not valid JSON: {error}", field="reward") from None

    @property
    def _required(self) -> list[str]:
        """Arguments without which the registered reward that this is cannot be built."""
        return [name for name, parameter in self._parameters.items() if parameter.required]

    @cached_property
    def _parameters(self) -> dict[str, RewardParameter]:
        """What the registered reward that this is takes, by name.

        Raises:
            rewards.RewardSpecError: No reward is registered under its name.
        """
        if self._registered is None:
            return {}
        return {each.name: each for each in rewards.describe(self._registered[0]).parameters}

    @cached_property
    def _registered(self) -> tuple[str, dict[str, Any]] | None:
        """Name and fixed arguments of the registered reward that this is, if it is one."""
        spec = self.name if self.reward is None else self.reward
        return rewards.parse(spec) if isinstance(spec, str | Mapping) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What a request gets.

    Attributes:
        reward: How answers are judged.
        config: The settings.
        token_budget: Most tokens drawn and scored; None for any number.
    """

    reward: RewardSpec
    config: ETSConfig
    token_budget: int | None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What agents may ask for. What goes beyond it is refused with what is allowed; nothing is cut down silently.

    Attributes:
        rewards: The rewards on offer, the default one first; built-in ones by name.
        max_candidates: Most candidates of a step, all chains together (M · N).
        max_rollouts: Most rollouts of a candidate (K).
        max_steps: Most steps (I).
        max_tokens: Most tokens of an answer.
        max_seconds: Longest time limit, and the one where none is asked for; None for no limit.
        max_token_budget: Most tokens that are drawn and scored for one answer, and the budget where none is asked for;
            None for no limit.
        max_reward_chars: Most characters of a reward with its arguments, as JSON: it is looked at when a request comes
            in, and everybody waits for that.
    """

    rewards: Sequence[str | RewardOffer] = DEFAULT_REWARDS
    max_candidates: int = 32
    max_rollouts: int = 16
    max_steps: int = 32
    max_tokens: int = 1024
    max_seconds: float | None = 120.0
    max_token_budget: int | None = None
    max_reward_chars: int = 20_000
    offers: Mapping[str, RewardOffer] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check everything."""
        for name in [each.name for each in fields(self) if each.name.startswith("max_")]:
            value = getattr(self, name)
            if value is None and name in ("max_seconds", "max_token_budget"):
                continue
            whole = name != "max_seconds"
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not 0 < value < inf:
                raise ConfigError(f"{name} is {value!r}; allowed: a {'whole ' if whole else ''}number above 0")
        if isinstance(self.rewards, str) or not self.rewards:
            raise ConfigError("rewards must be a list of at least one reward's name or RewardOffer")
        offers = [RewardOffer(name=each) if isinstance(each, str) else each for each in self.rewards]
        names = [offer.name for offer in offers]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ConfigError(f"reward {twice[0]!r} is offered twice")
        object.__setattr__(self, "offers", dict(zip(names, offers, strict=True)))

    def check(self, request: GuidedRequest, base: ETSConfig, *, one_step: bool) -> Allowed:
        """Return what a request gets, all of it checked; no model is needed for that.

        Args:
            request: The request.
            base: The operator's own settings.
            one_step: Whether the model can only answer in one step.

        Raises:
            RequestError: Something is not possible or goes beyond what is allowed.
        """
        return Allowed(
            config=self.config(request, base, one_step=one_step),
            reward=self.reward(request),
            token_budget=self.token_budget(request),
        )

    def reward(self, request: GuidedRequest) -> RewardSpec:
        """Return the reward that a request asks for.

        Raises:
            RequestError: It is not on offer, or not with these arguments.
        """
        if request.reward is None:
            return next(iter(self.offers.values())).spec({})
        try:
            given = request.reward if isinstance(request.reward, str) else json.dumps(request.reward, default=str)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"the reward with its arguments is no JSON: {error}", field="reward") from error
        self._check("the length of the reward with its arguments", len(given), self.max_reward_chars, field="reward")
        try:
            name, arguments = rewards.parse(request.reward)
        except RewardError as error:
            raise RequestError(str(error), field="reward") from error
        offer = self.offers.get(name)
        if offer is None:
            raise RequestError(
                f"reward {name!r:.80} is not allowed here; allowed: {', '.join(self.offers)}", field="reward"
            )
        return offer.spec(arguments)

    def config(self, request: GuidedRequest, base: ETSConfig, *, one_step: bool) -> ETSConfig:
        """Return the settings that a request asks for.

        Args:
            request: The request.
            base: The operator's own settings.
            one_step: Whether the model can only answer in one step.

        Raises:
            RequestError: A setting is not possible or goes beyond what is allowed.
        """
        given: dict[str, Any] = {} if request.settings is None else request.settings.model_dump(exclude_none=True)
        tokens = min(base.max_tokens, self.max_tokens) if request.max_tokens is None else request.max_tokens
        limits = [limit for limit in (base.timeout, self.max_seconds) if limit is not None]
        seconds = min(limits, default=None) if request.timeout is None else request.timeout
        try:
            chains = given.get("num_chains", base.num_chains)
            effort = self._effort(request, tokens, chains=chains, one_step=one_step)
            config = base.replace(**effort, max_tokens=tokens)
            config = config.replace(**given, timeout=seconds)
        except ConfigError as error:
            raise RequestError.of(error) from error
        rollouts = config.num_rollouts if isinstance(config.num_rollouts, int) else config.num_rollouts[1]
        candidates = config.num_candidates * config.num_chains
        by_blocks = config.block_size is not None
        self._check("max_tokens", config.max_tokens, self.max_tokens, field="max_tokens")
        self._check("num_candidates times num_chains", candidates, self.max_candidates, field="settings.num_candidates")
        self._check("num_rollouts", rollouts, self.max_rollouts, field="settings.num_rollouts")
        self._check(
            "the number of steps",
            len(config.blocks),
            self.max_steps,
            field="settings.block_size" if by_blocks else "settings.num_steps",
        )
        # Everything drawn is searched for each of them.
        self._check("the number of stop strings", len(config.stop), MAX_STOPS, field="settings.stop")
        longest = max(map(len, config.stop), default=0)
        self._check("the length of a stop string", longest, MAX_STOP_CHARS, field="settings.stop")
        if seconds is not None and self.max_seconds is not None and seconds > self.max_seconds:
            raise RequestError(
                f"timeout is {seconds:g}; allowed: at most {self.max_seconds:g} seconds", field="timeout"
            )
        return config

    def token_budget(self, request: GuidedRequest) -> int | None:
        """Return how many tokens may be drawn and scored for a request; None for any number.

        Raises:
            RequestError: It asks for more than is allowed.
        """
        if request.token_budget is None:
            return self.max_token_budget
        if self.max_token_budget is not None:
            self._check("token_budget", request.token_budget, self.max_token_budget, field="token_budget")
        return request.token_budget

    def _effort(self, request: GuidedRequest, tokens: int, *, chains: int, one_step: bool) -> dict[str, int]:
        """Return the settings of an effort, as far as they are allowed and possible."""
        settings = EFFORTS[request.effort]
        return {
            "num_candidates": min(settings["num_candidates"], max(1, self.max_candidates // chains)),
            "num_rollouts": min(settings["num_rollouts"], self.max_rollouts),
            "num_steps": 1 if one_step else min(settings["num_steps"], self.max_steps, tokens),
        }

    def _check(self, name: str, value: int, most: int, *, field: str) -> None:
        if value > most:
            raise RequestError(f"{name} is {value}; allowed: at most {most}", field=field)
