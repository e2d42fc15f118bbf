"""The options of commands that answer others' questions: what callers may ask for, and how many of them at once.

`reasoning_settings` makes of them the arguments of `GuidedReasoning`.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

import rewards
from ets_agent._proposal import check_proposal_settings
from ets_agent.cli import options
from ets_agent.cli.names import CEILING_OPTIONS
from ets_agent.errors import ConfigError
from ets_agent.guided import Policy, RewardOffer
from ets_agent.guided.policy import DEFAULT_REWARDS

DEFAULT_CONCURRENCY = 4
"""Answers in the making at the same time; one has dozens of responses in a batch already."""
DEFAULT_QUEUE = 64
_DEFAULTS = {field.name: field.default for field in fields(Policy) if field.name in CEILING_OPTIONS}


def _ceiling(name: str, about: str, *, metavar: str | None = None) -> Any:
    """Return the option for a ceiling of `Policy`; it is None unless given, so that the policy's default holds."""
    default = _DEFAULTS[name]
    return typer.Option(
        CEILING_OPTIONS[name],
        help=f"{about} (default: {'no limit' if default is None else format(default, 'g')}).",
        metavar=metavar,
        show_default=False,
        rich_help_panel="What callers may ask for",
    )


AllowReward = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-reward",
        metavar="SPEC",
        help="Reward that callers may ask for; repeat it for more. The first is what they get who name none. Arguments "
        "given here, as in code_tests:timeout=5, are fixed for all callers (default: "
        + ", ".join(DEFAULT_REWARDS)
        + ").",
        show_default=False,
        rich_help_panel="What callers may ask for",
    ),
]
MaxCandidates = Annotated[int | None, _ceiling("max_candidates", "Most candidates of a step, M times chains")]
MaxRollouts = Annotated[int | None, _ceiling("max_rollouts", "Most rollouts of a candidate, K")]
MaxSteps = Annotated[int | None, _ceiling("max_steps", "Most steps, I")]
MaxTokens = Annotated[
    int | None,
    _ceiling(
        "max_tokens",
        "Most tokens of an answer; if given, also the number where none is asked for",
    ),
]
MaxSeconds = Annotated[
    float | None,
    _ceiling("max_seconds", "Longest time limit, and the one of calls without", metavar="SECONDS"),
]
MaxTokenBudget = Annotated[
    int | None,
    _ceiling("max_token_budget", "Most tokens drawn and scored for one answer, and its budget"),
]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, help="Most answers in the making at the same time.")]
Queue = Annotated[
    int, typer.Option("--queue", min=0, help="Most calls that wait for their turn; further ones are told to come back.")
]
Traces = Annotated[
    Path | None,
    typer.Option(
        "--traces",
        metavar="DIR",
        help="Existing folder that gets a trace of every run, TRACE_ID.jsonl.",
        show_default=False,
    ),
]


def reasoning_settings(context: typer.Context) -> dict[str, Any]:
    """Return the arguments of `GuidedReasoning` but for the models, all checked, so that no model is loaded in vain.

    Raises:
        ConfigError: An option is not allowed.
        rewards.RewardError: A reward does not exist.
    """
    policy = _policy(context)
    config = options.config_from(context)  # Beneath what requests ask for: temperature, λ and the like.
    check_proposal_settings(config, proposal=context.params.get("proposal") is not None)
    traces = context.params.get("traces")
    if traces is not None and not Path(traces).is_dir():
        raise ConfigError(f"there is no folder {traces} for traces")
    return {
        "policy": policy,
        "config": config,
        "max_concurrency": context.params["concurrency"],
        "max_queue": context.params["queue"],
        "traces": traces,
    }


def _policy(context: typer.Context) -> Policy:
    """Return what a command's options let callers ask for."""
    specs = context.params.get("allow_reward") or ()
    ceilings = {name: context.params[name] for name in CEILING_OPTIONS if context.params.get(name) is not None}
    if not specs:
        return Policy(**ceilings)
    return Policy(rewards=[_offer(spec) for spec in specs], **ceilings)


def _offer(spec: str) -> RewardOffer:
    """Return the offer of a reward: by its name alone, or with arguments that callers cannot change."""
    name, fixed = rewards.parse(spec)
    return RewardOffer(name=name, reward={"name": name, **fixed} if fixed else None)
