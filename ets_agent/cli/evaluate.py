"""``ets eval``: measure a method on a problem set."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

import rewards
from ets_agent.cli import errors, options
from ets_agent.cli.eval_progress import EvalProgress
from ets_agent.cli.output import emit
from ets_agent.cli.run import session
from ets_agent.config import ETSConfig
from ets_agent.errors import ConfigError
from ets_agent.evaluation import METHODS, EvalReport, Problem, evaluate, word_problems
from ets_agent.sampler import DEFAULT_CONCURRENCY

_BENCHMARKS: dict[str, Callable[[int, int], Sequence[Problem]]] = {
    "word_problems": lambda limit, seed: word_problems.problems("test", limit, seed=seed),
}
_DEFAULT_LIMIT = 100


def evaluate_command(
    context: typer.Context,
    benchmark: Annotated[
        str,
        typer.Argument(
            help=f"Problem set: {', '.join(_BENCHMARKS)}.",
            show_default=False,
            autocompletion=lambda: list(_BENCHMARKS),
        ),
    ],
    method: Annotated[
        str, typer.Option("--method", help=f"One of {', '.join(METHODS)}.", autocompletion=lambda: list(METHODS))
    ] = "ets",
    limit: Annotated[int, typer.Option("--limit", "-L", min=1, help="Number of problems.")] = _DEFAULT_LIMIT,
    n: Annotated[
        int | None, typer.Option("--n", "-N", help="Responses per problem for best_of_n.", show_default="M * K")
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, help="Most problems under way at the same time.")
    ] = DEFAULT_CONCURRENCY,
    model: options.Model = options.DEFAULT_MODEL,
    reward: options.RewardSpec = options.DEFAULT_REWARD,
    num_candidates: options.NumCandidates = None,
    num_rollouts: options.NumRollouts = None,
    num_steps: options.NumSteps = None,
    block_size: options.BlockSize = None,
    kl_coef: options.KlCoef = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    seed: options.EvalSeed = 0,
    timeout: options.Timeout = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    raw: options.Raw = False,
    as_json: options.Json = False,
    progress: options.Progress = None,
    debug: options.Debug = False,
) -> None:
    """Measure how many problems of a set a method answers correctly."""
    with session(debug=debug) as running:
        # All that can be wrong with the command itself is found before a model is loaded for it.
        config = options.config_from(context)
        _check_names(benchmark, method, n)
        rewards.build(reward)
        problems = _BENCHMARKS[benchmark](limit, seed)
        shown = progress if progress is not None else sys.stderr.isatty()
        with EvalProgress(enabled=shown, total=len(problems), title=f"{benchmark}, {method}") as display:
            backend = options.load_model(model, device=device, dtype=dtype)

            async def main() -> EvalReport:
                async with backend:
                    return await evaluate(
                        backend,
                        problems,
                        method=method,
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
        emit(report.model_dump_json(indent=2) if as_json else summarise(report))
        _mind_errors(report)


def summarise(report: EvalReport) -> str:
    """Return the figures of a report as a few lines of text."""
    low, high = report.interval
    failed = f", {report.errors} failed" if report.errors else ""
    rows = [
        ("method", _method(report)),
        ("model", report.model),
        ("accuracy", f"{report.accuracy:.1%} (95% interval {low:.1%} to {high:.1%})"),
        ("correct", f"{report.correct} of {report.count}{failed}"),
        ("tokens", f"{report.tokens:,} ({report.tokens_per_problem:,.0f} per problem)"),
        ("seconds", f"{report.seconds:.1f}"),
        ("seed", str(report.seed)),
    ]
    return "\n".join(f"{label:<9} {value}" for label, value in rows)


def _method(report: EvalReport) -> str:
    config: ETSConfig = report.config
    match report.method:
        case "base":
            details = f"temperature {config.temperature:g}"
        case "best_of_n":
            details = f"N {config.num_candidates}, {report.reward}"
        case _:
            details = (
                f"M {config.num_candidates}, K {config.num_rollouts}, I {len(config.blocks)}, "
                f"λ {config.kl_coef:g}, {report.reward}"
            )
    return f"{report.method} ({details})"


def _check_names(benchmark: str, method: str, n: int | None) -> None:
    if benchmark not in _BENCHMARKS:
        raise ConfigError(f"there is no problem set {benchmark!r}; allowed: {', '.join(_BENCHMARKS)}")
    if method not in METHODS:
        raise ConfigError(f"there is no method {method!r}; allowed: {', '.join(METHODS)}")
    if n is not None and n < 1:
        raise ConfigError(f"n is {n}; allowed: at least 1")


def _mind_errors(report: EvalReport) -> None:
    """Say that problems failed; where all did, nothing was measured, which is a failure of the command."""
    first = next((item.error for item in report.items if item.error is not None), None)
    if first is None:
        return
    message = f"{report.errors} of {report.count} problems failed and count as wrong; the first: {first}"
    if report.errors == report.count:
        raise errors.CommandError(message)
    errors.warn(message)
