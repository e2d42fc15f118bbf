"""The options that commands share, and their translation into the library's settings.

Each option that is a setting of `ETSConfig` carries the setting's name as its parameter name, and takes its help and
its default from there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from ets_agent.cli.config_file import read_config
from ets_agent.cli.names import SETTING_OPTIONS, in_options
from ets_agent.config import DEFAULT_NUM_STEPS, ETSConfig
from ets_agent.errors import ConfigError

DEFAULT_MODEL = "tiny/qwen3"
DEFAULT_PROPOSALS = {"tiny/qwen3": "tiny/qwen3-small"}
"""What `ets eval` takes for a method that needs a proposal."""
DEFAULT_REWARD = "self_consistency"
_TINY_MAX_TOKENS = 64


def _setting(name: str, *, default: str | None = None, metavar: str | None = None) -> Any:
    """Return the option for a setting; it is None unless given, so that the library's own default holds."""
    field = ETSConfig.model_fields[name]
    shown = field.default if default is None else default
    about = in_options(field.description or "").rstrip(".")
    return typer.Option(
        *SETTING_OPTIONS[name],
        help=f"{about}." if shown in (None, ()) else f"{about} (default: {shown}).",
        metavar=metavar,
        show_default=False,
        rich_help_panel="Sampling",
    )


def _proposal(*, default: str | None = None) -> Any:
    return typer.Option(
        "--proposal",
        metavar="NAME",
        help="Cheaper model for the rollouts (ETS-IS), with the tokenizer of the reference.",
        show_default=default or False,
    )


Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="Reference model: tiny/NAME (see `ets models`), hf/ID_OR_PATH, vllm/MODEL@URL, openai/MODEL or "
        "litellm/PROVIDER/MODEL.",
    ),
]
Proposal = Annotated[str | None, _proposal()]
EvalProposal = Annotated[
    str | None,
    _proposal(
        default=", ".join(f"{small} for {model}" for model, small in DEFAULT_PROPOSALS.items())
        + ", where a method needs one"
    ),
]
RewardSpec = Annotated[
    str,
    typer.Option(
        "--reward",
        "-r",
        help="Reward by name (see `ets rewards`), with arguments after a colon: math_answer:gold=42; or a JSON object "
        'with its "name" and arguments.',
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        is_eager=True,
        callback=read_config,
        help="JSON file with values for these options; command-line options override it.",
        show_default=False,
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="Where a local model runs: cpu, cuda, …", show_default=False)
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="Number format of a local model: float32, bfloat16, …", show_default=False)
]
Raw = Annotated[
    bool, typer.Option("--raw", help="Let the model continue the question as plain text, not answer a chat message.")
]
TraceFile = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="Write the run to a new file while it goes on; `ets trace FILE` shows it.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print everything as JSON on stdout.")]
Progress = Annotated[
    bool | None,
    typer.Option(
        "--progress/--no-progress", help="Show progress on stderr.", show_default="where stderr is a terminal"
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

NumCandidates = Annotated[int | None, _setting("num_candidates")]
NumRollouts = Annotated[str | None, _setting("num_rollouts", metavar="K|LOW:HIGH")]
NumSteps = Annotated[int | None, _setting("num_steps", default=str(DEFAULT_NUM_STEPS))]
BlockSize = Annotated[int | None, _setting("block_size")]
KlCoef = Annotated[float | None, _setting("kl_coef")]
NumChains = Annotated[int | None, _setting("num_chains")]
Estimator = Annotated[str | None, _setting("estimator", metavar="NAME")]
Temperature = Annotated[float | None, _setting("temperature")]
TopP = Annotated[float | None, _setting("top_p")]
TopK = Annotated[int | None, _setting("top_k")]
ProposalTemperature = Annotated[float | None, _setting("proposal_temperature")]
MaxTokens = Annotated[
    int | None,
    _setting(
        "max_tokens",
        default=f"{_TINY_MAX_TOKENS} for tiny/ models, otherwise {ETSConfig.model_fields['max_tokens'].default}",
    ),
]
Stop = Annotated[list[str] | None, _setting("stop", metavar="TEXT")]
Seed = Annotated[int | None, _setting("seed", default="random")]
EvalSeed = Annotated[
    int, typer.Option("--seed", help="Seed of the problems and of every run.", rich_help_panel="Sampling")
]
Timeout = Annotated[float | None, _setting("timeout", metavar="SECONDS")]


def config_from(context: typer.Context) -> ETSConfig:
    """Return the settings that a command's options make.

    Raises:
        ConfigError: They are not allowed.
    """
    given = {
        name: context.params[name] for name in ETSConfig.model_fields if context.params.get(name) not in (None, [], ())
    }
    if "num_rollouts" in given:
        given["num_rollouts"] = _rollouts(given["num_rollouts"])
    if str(context.params["model"]).startswith("tiny/"):
        given.setdefault("max_tokens", _TINY_MAX_TOKENS)
    return ETSConfig.build(**given)


def _rollouts(text: str) -> int | tuple[int, int]:
    """Return a number of rollouts, ``4``, or a range, ``2:8``."""
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    if match is None:
        raise ConfigError(f"--rollouts is {text!r}; allowed: a number of at least 1, or a range such as 2:8")
    low, high = match.groups()
    return int(low) if high is None else (int(low), int(high))
