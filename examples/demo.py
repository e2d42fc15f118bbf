"""The main job, on a model that ships with the package: word problems solved with ETS, against plain sampling.

    pip install -e ".[local]"
    python examples/demo.py

No download, no key, no GPU. `ets solve` and `ets eval` do the same from the command line.
"""

from __future__ import annotations

import argparse
import asyncio

import torch
from rich.console import Console

import backends
from ets_agent import ETS, CandidatesWeighed, ETSConfig, Finished
from ets_agent.evaluation import word_problems
from ets_agent.evaluation.report import EvalReport
from ets_agent.evaluation.runner import evaluate

MODEL = "tiny/qwen3"
SETTINGS = ETSConfig(num_candidates=8, num_rollouts=4, block_size=16, kl_coef=0.1, temperature=1.0, max_tokens=64)
QUESTION = (
    "Mia has 6 boxes with 45 shells in each. Mia gives 95 to Leo. Mia shares them equally among 7 people, Mia "
    "included. Mia finds 130 more. How many shells does Mia have now?"
)
BAR = 20


async def show_one(ets: ETS, console: Console) -> None:
    """Solve one problem and print each step's candidates with their weights."""
    console.print(f"[bold]Question[/]  {QUESTION}\n")
    async for event in ets.stream([{"role": "user", "content": QUESTION}], seed=0):
        if isinstance(event, CandidatesWeighed):
            trace = event.trace
            console.print(f"[bold]step {trace.step}[/]  effective sample size {trace.ess:.1f} of {len(trace.weights)}")
            for index, (text, weight) in enumerate(zip(trace.candidates, trace.weights, strict=True)):
                mark = ">" if index == trace.chosen else " "
                bar = "█" * round(BAR * weight)
                line = f"{mark} {bar:<{BAR}} {weight:6.1%}  {text!r}"
                console.print(line, style="bold" if mark == ">" else None, markup=False, highlight=False)
        elif isinstance(event, Finished):
            usage = event.result.usage
            console.print(f"\n[bold]Answer[/]    {event.result.answer}")
            console.print(f"          {usage.total_tokens} tokens, {usage.seconds:.1f} s\n", style="dim")


async def compare(backend: backends.Backend, console: Console, limit: int) -> list[EvalReport]:
    """Run plain sampling and ETS on the same unseen problems."""
    problems = word_problems.problems("test", limit, seed=0)
    reports = []
    console.print(f"[bold]{limit} unseen problems[/], M = 8, K = 4, four blocks of 16 tokens, temperature 1")
    for method, label in (("base", "plain sampling"), ("ets", "ETS")):
        with console.status(label) as status:
            done = 0

            def progress(_: object) -> None:
                nonlocal done
                done += 1
                status.update(f"{label}: {done} of {limit}")  # noqa: B023 - called within this round

            report = await evaluate(backend, problems, method=method, config=SETTINGS, seed=0, on_progress=progress)
        low, high = report.interval
        console.print(
            f"{label:<15} {report.accuracy:6.1%} right  (95 % interval {low:.1%} to {high:.1%}), "
            f"{report.tokens / limit:.0f} tokens and {report.seconds / limit:.2f} s a problem",
            highlight=False,
            soft_wrap=True,
        )
        reports.append(report)
    return reports


async def run(limit: int) -> None:
    """Show one problem, then the comparison."""
    console = Console()
    async with backends.load(MODEL) as backend:
        await show_one(ETS(backend, "self_consistency", config=SETTINGS), console)
        await compare(backend, console, limit)
    command = f"ets eval word_problems --method ets -B 16 --limit {limit}"
    console.print(f"\nThe same from the command line:  {command}", soft_wrap=True)


def main() -> None:
    """Parse the one option there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=60, help="problems of the comparison")
    arguments = parser.parse_args()
    if arguments.limit < 1:
        parser.error("--limit must be at least 1")
    torch.set_num_threads(1)  # The model is too small for more.
    asyncio.run(run(arguments.limit))


if __name__ == "__main__":
    main()
