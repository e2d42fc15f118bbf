"""What settings are called on the command line, and the library's words put into those names."""

from __future__ import annotations

import re

SETTING_OPTIONS: dict[str, tuple[str, ...]] = {
    "num_candidates": ("--candidates", "-M"),
    "num_rollouts": ("--rollouts", "-K"),
    "num_steps": ("--steps", "-I"),
    "block_size": ("--block-size", "-B"),
    "kl_coef": ("--kl-coef",),
    "num_chains": ("--chains",),
    "estimator": ("--estimator",),
    "temperature": ("--temperature",),
    "top_p": ("--top-p",),
    "top_k": ("--top-k",),
    "proposal_temperature": ("--proposal-temperature",),
    "max_tokens": ("--max-tokens",),
    "stop": ("--stop",),
    "seed": ("--seed",),
    "timeout": ("--timeout",),
}
"""Options by the settings of `ETSConfig` that they set, the long name first."""

CEILING_OPTIONS = {
    name: f"--{name.replace('_', '-')}"
    for name in ("max_candidates", "max_rollouts", "max_steps", "max_tokens", "max_seconds", "max_token_budget")
}
"""Options by the ceilings of `Policy` that they set."""

_OPTIONS = CEILING_OPTIONS | {name: options[0] for name, options in SETTING_OPTIONS.items()}

# Names without an underscore are words, too, which say the same to whoever knows the option.
_UNMISTAKABLE = "|".join(name for name in _OPTIONS if "_" in name)
_SETTING = re.compile(rf"(?<![\w./'\"-])({_UNMISTAKABLE})(?![\w/'\"])(?: = |=)?")
_RANGE = re.compile(r"\((-?\d+), (-?\d+)\)")


def in_options(text: str) -> str:
    """Return a text of the library with options where it names settings, and ranges as they are given there."""
    text = _RANGE.sub(r"\1:\2", text.replace("(low, high)", "LOW:HIGH"))
    return _SETTING.sub(lambda match: _OPTIONS[match[1]] + (" " if match[0] != match[1] else ""), text)
