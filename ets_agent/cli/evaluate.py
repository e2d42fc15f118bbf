"""``ets eval``: measure a method on a problem set."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

import rewards
from ets_agent._proposal import check_proposal_settings
from ets_agent.cli import errors, inputs, options
from ets_agent.cli.eval_progress import EvalProgress
from ets_agent.cli.eval_summary import summarize
from ets_agent.cli.output import emit
from ets_agent.cli.session import session
from ets_agent.errors import ConfigError
from ets_agent.evaluation import METHODS, EvalReport, Problem, check_methods, evaluate, read_problems, word_problems
from ets_agent.sampler import DEFAULT_CONCURRENCY

_BENCHMARKS: dict[str, Callable[[int, int], Sequence[Problem]]] = {
    "word_problems": lambda limit, seed: word_problems.problems("test", limit, seed=seed),
}
_FILE = "a file of JSON lines with question and answer"
_DEFAULT_LIMIT = 100
_DEFAULT_RIVALS = {"ets_is": "ets"}
_NO_RIVAL = "none"


def evaluate_command(
    context: typer.Context,
    benchmark: Annotated[
        str,
        typer.Argument(
            help=f"Problem set: {', '.join(_BENCHMARKS)}, or {_FILE}, such as GSM8K's.",
            show_default=False,
            autocompletion=lambda: list(_BENCHMARKS),
        ),
    ],
    method: Annotated[
        str, typer.Option("--method", help=f"One of {', '.join(METHODS)}.", autocompletion=lambda: list(METHODS))
    ] = "ets",
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="METHOD",
            help=f"Run this method, too, in turn with the other, to compare wall times; {_NO_RIVAL} runs one alone.",
            show_default=", ".join(f"{rival} for {method}" for method, rival in _DEFAULT_RIVALS.items()),
            autocompletion=lambda: [*METHODS, _NO_RIVAL],
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-L", min=1, help="Number of problems, the first ones of a file.")
    ] = _DEFAULT_LIMIT,
    n: Annotated[
        int | None,
        typer.Option("--n", "-N", help="Responses per problem for best_of_n.", show_default="M * K, of all chains"),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, help="Most problems under way at the same time.")
    ] = DEFAULT_CONCURRENCY,
    model: options.Model = options.DEFAULT_MODEL,
    proposal: options.EvalProposal = None,
    reward: options.RewardSpec = options.DEFAULT_REWARD,
    num_candidates: options.NumCandidates = None,
    num_rollouts: options.NumRollouts = None,
    num_steps: options.NumSteps = None,
    block_size: options.BlockSize = None,
    kl_coef: options.KlCoef = None,
    num_chains: options.NumChains = None,
    estimator: options.Estimator = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    proposal_temperature: options.ProposalTemperature = None,
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    seed: options.EvalSeed = 0,
    timeout: options.Timeout = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    raw: options.Raw = False,
    config_file: options.Config = None,
    as_json: options.Json = False,
    progress: options.Progress = None,
    debug: options.Debug = False,
) -> None:
    """Measure how many problems of a set a method answers correctly."""
    with session(debug=debug) as running:
        # All that can be wrong with the command itself is found before a model is loaded for it.
        config = options.config_from(context)
        rival = _rival(method, against)
        methods = [method] if rival is None else [method, rival]
        if proposal is None and any(name in METHODS and METHODS[name].uses_proposal for name in methods):
            proposal = options.DEFAULT_PROPOSALS.get(model)
        check_methods(methods, proposal=proposal is not None, samples=n)
        check_proposal_settings(config, proposal=proposal is not None)
        rewards.build(reward)
        problems = _problems(benchmark, limit, seed)
        shown = progress if progress is not None else sys.stderr.isatty()
        title = benchmark if rival is not None else f"{benchmark}, {method}"  # A comparison's figures name its methods.
        with EvalProgress(enabled=shown, problems=len(problems), methods=methods, title=title) as display:
            backend, helper = inputs.load_models(model, proposal, device=device, dtype=dtype, note=display.note)
            display.note("")

            async def main() -> EvalReport:
                async with backend, helper or nullcontext():
                    return await evaluate(
                        backend,
                        problems,
                        method=method,
                        against=rival,
                        proposal=helper,
                        config=config,
                        reward=reward,
                        n=n,
                        chat=False if raw else None,
                        seed=seed,
                        concurrency=concurrency,
                        on_progress=display.advance,
                        benchmark=benchmark,
                    )

            report = running.run(main())
        emit(report.model_dump_json(indent=2) if as_json else summarize(report))
        _mind_errors(report)


def _problems(benchmark: str, limit: int, seed: int) -> Sequence[Problem]:
    """Return the problems of a set or of a file.

    Raises:
        ConfigError: There is neither, or the file is not as it should be.
    """
    if benchmark in _BENCHMARKS:
        return _BENCHMARKS[benchmark](limit, seed)
    path = Path(benchmark)
    # Not `Path.exists`, which raises for a name that no file can have; and `Path("")` is the working directory.
    if not os.path.exists(benchmark) and not path.suffix and path.name == benchmark:
        raise ConfigError(
            f"there is no problem set {benchmark!r} and no such file; allowed: {', '.join(_BENCHMARKS)}, or {_FILE}"
        )
    return read_problems(path, limit)


def _rival(method: str, against: str | None) -> str | None:
    if against is None:
        return _DEFAULT_RIVALS.get(method)
    return None if against == _NO_RIVAL else against


def _mind_errors(report: EvalReport) -> None:
    """Say that problems failed; where all of a method did, nothing was measured, which is a failure of the command."""
    for part in (report, report.against):
        first = None if part is None else next((item.error for item in part.items if item.error is not None), None)
        if part is None or first is None:
            continue
        whose = "" if report.against is None else f" of {part.method}"
        message = f"{part.errors} of {part.count} problems{whose} failed and count as wrong; the first: {first}"
        if part.errors == part.count:
            raise errors.CommandError(message)
        errors.warn(message)
