"""How far ETS is from the optimal policy: total-variation distance to exact p* on a model that can be listed.

    python benchmarks/convergence.py --out docs

Every cell of the table runs `ETS` many times with seeds of their own and compares the frequencies of its responses with
p*. The energies are exact (the best that any estimate can do), or estimated from K rollouts of the reference, or of
a near or a far proposal with importance weights. It writes convergence.png, convergence.csv and convergence.md.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import hashlib
import itertools
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from backends import Backend, Completion, Prompt, SamplingParams, State
from backends.enumerable import EnumerableBackend
from ets_agent import ETS, Result
from rewards import Reward

MODEL_SEED, MAX_TOKENS, KL_COEF = 9, 4, 0.1
NEAR, FAR = 0.3, 2.0
CANDIDATES = (1, 2, 4, 8, 16, 32, 64)
ROLLOUTS = (1, 4, 16)
STEPS = (1, 2, 4)
ENERGIES = {
    "exact": "exact energies",
    "rollouts": "rollouts of the reference",
    "own": "the same, none shared between copies",
    "near": f"near proposal (logits ± {NEAR})",
    "far": f"far proposal (logits ± {FAR})",
}


def value(completion: Completion) -> float:
    """Return a reward in [0, 1] that is a function of the text alone."""
    return hashlib.sha256(completion.text.encode()).digest()[0] / 255


class Valued(Reward):
    """`value` as a reward; for `ExactEnergies`, the energy that a completion stands for, times λ."""

    pointwise = True

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        """Return the values."""
        return [
            completion.logprob if completion.token_ids == (-1,) else value(completion) for completion in completions
        ]


class ExactEnergies:
    """A model whose only rollout stands for the exact energy of its candidate."""

    def __init__(self, model: EnumerableBackend) -> None:
        """Wrap a model."""
        self._model = model
        self._known: dict[State, float] = {}

    def __getattr__(self, name: str) -> Any:
        """Be the model in everything else."""
        return getattr(self._model, name)

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        """Return the energies; see `Valued`."""
        for state in states:
            if state not in self._known:
                self._known[state] = KL_COEF * self._model.log_energy(state, value, kl_coef=KL_COEF)
        return [[Completion(text="", token_ids=(-1,), logprob=self._known[state])] * n for state in states]


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting and, once it has run, its distance to p*."""

    energies: str
    num_steps: int
    num_candidates: int
    num_rollouts: int
    repetitions: int
    distance: float = math.nan
    ess: float = math.nan


async def exact_policy(model: EnumerableBackend, *, kl_coef: float = KL_COEF) -> dict[str, float]:
    """Return p* by text; p_ref for an infinite λ."""
    start = await model.begin("q", max_tokens=MAX_TOKENS, params=SamplingParams())
    policy: dict[str, float] = {}
    for completion, probability in model.policy(start, value, kl_coef=kl_coef).items():
        policy[completion.text] = policy.get(completion.text, 0.0) + probability
    return policy


def distance(frequencies: Counter[str], policy: dict[str, float]) -> float:
    """Return the total-variation distance."""
    total = frequencies.total()
    return sum(abs(frequencies[text] / total - policy.get(text, 0.0)) for text in {*frequencies, *policy}) / 2


def noise_floor(policy: dict[str, float], repetitions: int) -> float:
    """Return the mean distance of that many draws from p* itself, by simulation."""
    rng, probabilities = np.random.default_rng(0), np.array(list(policy.values()))
    draws = rng.multinomial(repetitions, probabilities / probabilities.sum(), size=2000) / repetitions
    return float(np.abs(draws - probabilities).sum(axis=1).mean() / 2)


async def measure(cell: Cell) -> Cell:
    """Run ETS in one setting."""
    model = EnumerableBackend.random(MODEL_SEED)
    backend: Any = ExactEnergies(model) if cell.energies == "exact" else model
    proposals: dict[str, Backend] = {"near": model.perturbed(NEAR, seed=1), "far": model.perturbed(FAR, seed=1)}
    ets = ETS(
        backend,
        Valued(),
        proposals.get(cell.energies),
        num_candidates=cell.num_candidates,
        num_rollouts=cell.num_rollouts,
        num_steps=cell.num_steps,
        share_rollouts=cell.energies != "own",
        kl_coef=KL_COEF,
        max_tokens=MAX_TOKENS,
    )
    results = await ets.complete_many(["q"] * cell.repetitions, concurrency=1, seed=hash_seed(cell))
    done = [result for result in results if isinstance(result, Result)]
    if len(done) < len(results):
        raise next(result for result in results if isinstance(result, Exception))
    checks = [step.diagnostics for result in done for step in result.steps]
    shares = [check.ratio_ess / check.num_ratios for check in checks if check.ratio_ess is not None]
    found = distance(Counter(result.text for result in done), await exact_policy(model))
    return replace(cell, distance=found, ess=float(np.mean(shares)) if shares else math.nan)


def hash_seed(cell: Cell) -> int:
    """Return a seed of the cell's own, the same in every run."""
    key = (cell.energies, cell.num_steps, cell.num_candidates, cell.num_rollouts)
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:6])


def run_cell(cell: Cell) -> Cell:
    """Run one cell in a worker process."""
    return asyncio.run(measure(cell))


def grid(repetitions: int) -> list[Cell]:
    """Return all cells. In a single step every candidate is complete, so that there is no energy to estimate."""
    cells = [Cell("exact", i, m, 1, 2 * repetitions) for i, m in itertools.product(STEPS, CANDIDATES)]
    several = [steps for steps in STEPS if steps > 1]
    for energies in ("rollouts", "near", "far"):
        settings = itertools.product(several, CANDIDATES, ROLLOUTS)
        cells += [Cell(energies, i, m, k, repetitions) for i, m, k in settings]
    return cells + [Cell("own", i, m, 1, repetitions) for i, m in itertools.product(several, CANDIDATES)]


def run_all(cells: Sequence[Cell], workers: int) -> list[Cell]:
    """Run the cells, the longest first, with a line of progress on stderr."""
    done: dict[Cell, Cell] = {}
    order = sorted(cells, key=lambda cell: -cell.num_candidates * cell.num_rollouts * cell.num_steps)
    with ProcessPoolExecutor(workers) as pool:
        futures = {pool.submit(run_cell, cell): cell for cell in order}
        for future in as_completed(futures):
            done[futures[future]] = future.result()
            print(f"\r{len(done)} of {len(cells)} cells", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return [done[cell] for cell in cells]


def slope(cells: Sequence[Cell], floor: float) -> float | None:
    """Return the slope of log distance over log M, of the cells above three times the noise floor."""
    clear = [cell for cell in cells if cell.distance > 3 * floor]
    if len(clear) < 2:
        return None
    logs = np.log([[cell.num_candidates, cell.distance] for cell in clear])
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def series(cells: Sequence[Cell]) -> dict[tuple[str, int, int], list[Cell]]:
    """Group the cells into curves over M: by energies, steps and rollouts."""
    curves: dict[tuple[str, int, int], list[Cell]] = {}
    for cell in cells:
        curves.setdefault((cell.energies, cell.num_steps, cell.num_rollouts), []).append(cell)
    return curves


def table(cells: Sequence[Cell], floors: dict[int, float]) -> str:
    """Return the distances as a Markdown table, a row for each curve."""
    lines = [
        "| energies | I | K | " + " | ".join(f"M = {m}" for m in CANDIDATES) + " | slope | ESS of ρ |",
        "|---" * (5 + len(CANDIDATES)) + "|",
    ]
    for (energies, steps, rollouts), curve in series(cells).items():
        fitted = slope(curve, floors[curve[0].repetitions])
        distances = " | ".join(f"{cell.distance:.3f}" for cell in curve)
        ess = "" if math.isnan(curve[-1].ess) else f"{curve[-1].ess:.0%}"
        label = "–" if energies == "exact" else rollouts
        shown = "–" if fitted is None else f"{fitted:.2f}"
        lines.append(f"| {ENERGIES[energies]} | {steps} | {label} | {distances} | {shown} | {ess} |")
    return "\n".join(lines)


def draw(cells: Sequence[Cell], floors: dict[int, float], path: Path) -> None:
    """Draw the log-log plots: a column for each number of steps, a row for each kind of proposal."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    curves = series(cells)
    several = [steps for steps in STEPS if steps > 1]
    figure, axes = plt.subplots(len(several), 3, figsize=(12, 7), sharex=True, sharey=True, constrained_layout=True)
    titles = {"rollouts": "rollouts of the reference", "near": ENERGIES["near"], "far": ENERGIES["far"]}
    colors = dict(zip(ROLLOUTS, ("tab:orange", "tab:green", "tab:blue"), strict=True))
    for row, steps in enumerate(several):
        for column, (energies, title) in enumerate(titles.items()):
            axis = axes[row, column]
            shown = [(("exact", steps, 1), "exact energies", "black", "-")]
            if row == 0:
                shown.append((("exact", 1, 1), "one step (I = 1)", "0.6", "-"))
            shown += [((energies, steps, k), f"K = {k}", colors[k], "-") for k in ROLLOUTS]
            if energies == "rollouts":
                shown.append((("own", steps, 1), "K = 1, none shared", colors[1], ":"))
            for key, label, color, style in shown:
                curve = curves[key]
                found = [cell.distance for cell in curve]
                axis.plot(CANDIDATES, found, style, color=color, marker="o", markersize=3, label=label)
            first = curves["exact", steps, 1][0].distance
            axis.plot(CANDIDATES, [first / math.sqrt(m) for m in CANDIDATES], "--", color="0.7", label="∝ M^(-1/2)")
            for floor in floors.values():
                axis.axhline(floor, color="0.85", linewidth=1, zorder=0)
            axis.set(xscale="log", yscale="log", title=f"I = {steps}, {title}")
            axis.set_xticks(CANDIDATES, [str(m) for m in CANDIDATES])
            axis.minorticks_off()
            axis.legend(fontsize=7)
    figure.supxlabel("M, candidates per step")
    figure.supylabel("total-variation distance to p*; grey lines: noise floors")
    figure.savefig(path, dpi=110)


def write(cells: Sequence[Cell], floors: dict[int, float], summary: str, out: Path) -> None:
    """Write plot, table and raw figures."""
    out.mkdir(parents=True, exist_ok=True)
    draw(cells, floors, out / "convergence.png")
    page = f"# Convergence, measured\n\n{summary}\n\n{table(cells, floors)}\n"
    (out / "convergence.md").write_text(page, encoding="utf-8")
    with (out / "convergence.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(
            ["energies", "num_steps", "num_candidates", "num_rollouts", "repetitions", "distance", "ratio_ess"]
        )
        for cell in cells:
            where = (cell.energies, cell.num_steps, cell.num_candidates, cell.num_rollouts, cell.repetitions)
            rows.writerow([*where, f"{cell.distance:.5f}", "" if math.isnan(cell.ess) else f"{cell.ess:.4f}"])


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repetitions", type=int, default=1500, help="runs per cell; twice as many with exact energies"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("convergence"), help="folder for plot and tables")
    arguments = parser.parse_args()
    if arguments.repetitions < 1 or arguments.workers < 1:
        parser.error("--repetitions and --workers must be at least 1")
    began = time.monotonic()
    model = EnumerableBackend.random(MODEL_SEED)
    policy = asyncio.run(exact_policy(model))
    reference = asyncio.run(exact_policy(model, kl_coef=1e12))
    cells = run_all(grid(arguments.repetitions), arguments.workers)
    floors = {count: noise_floor(policy, count) for count in sorted({cell.repetitions for cell in cells})}
    start = sum(abs(reference[text] - policy[text]) for text in policy) / 2
    summary = (
        f"Total-variation distance between the responses of ETS and exact p*, on a model of {len(policy)} responses\n"
        f"(λ = {KL_COEF}, {MAX_TOKENS} tokens, model seed {MODEL_SEED}). p_ref itself is {start:.3f} away.\n"
        "Noise floor, the mean distance of as many draws from p* itself: "
        + ", ".join(f"{floor:.4f} with {count} runs" for count, floor in floors.items())
        + ".\nSlope: of log distance over log M, where the distance is more than three times the floor."
    )
    write(cells, floors, summary, arguments.out)
    print(summary, "", table(cells, floors), "", sep="\n")
    for steps in STEPS:
        curve = series(cells)["exact", steps, 1]
        fitted = slope(curve, floors[curve[0].repetitions])
        if fitted is not None:
            print(f"exact energies, I = {steps}: distance ∝ M^{fitted:.2f} (M^-0.5 or faster: {fitted <= -0.5})")
    print(f"{time.monotonic() - began:.0f} s on {arguments.workers} processes, figures in {arguments.out}/")


if __name__ == "__main__":
    main()
