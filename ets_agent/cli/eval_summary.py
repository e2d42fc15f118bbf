"""The figures of an evaluation as text: those of one method in a list, those of two side by side."""

from __future__ import annotations

from collections.abc import Sequence

from ets_agent.evaluation import EvalReport


def summarize(report: EvalReport) -> str:
    """Return the figures of a report as a few lines of text."""
    return _alone(report) if report.against is None else _side_by_side(report, report.against)


def _alone(report: EvalReport) -> str:
    figures = _figures(report)
    accuracy = f"{figures.pop('accuracy')} (95% interval {figures.pop('95% interval')})"
    rows = {"method": _described(report), **_models(report), "accuracy": accuracy, **figures, "seed": str(report.seed)}
    return _aligned([(label, value) for label, value in rows.items() if value])


def _side_by_side(report: EvalReport, other: EvalReport) -> str:
    head = {"method": _described(report), "against": _described(other), **_models(report), **_models(other)}
    own, others = _figures(report), _figures(other)
    table = [("", report.method, other.method)]
    table += [(label, own[label] or "-", others[label] or "-") for label in own if own[label] or others[label]]
    lines = [_aligned([*head.items(), ("seed", str(report.seed))]), "", _aligned(table)]
    if report.wall_time_ratio is not None:
        ratio = f"{report.wall_time_ratio:.2f} of {other.method}'s"
        if report.median_chunk_ratio is not None and len(report.chunk_seconds) > 1:
            ratio += f" (median of {len(report.chunk_seconds)} chunks: {report.median_chunk_ratio:.2f})"
        lines += ["", f"wall time of {report.method}: {ratio}"]
    return "\n".join(lines)


def _figures(report: EvalReport) -> dict[str, str]:
    """Return what was measured by what it is called, empty where there is nothing."""
    low, high = report.interval
    return {
        "accuracy": f"{report.accuracy:.1%}",
        "95% interval": f"{low:.1%} to {high:.1%}",
        "correct": f"{report.correct} of {report.count}{f', {report.errors} failed' if report.errors else ''}",
        "ESS": "" if report.ess is None else f"{report.ess:.1%} of candidates",
        "ratio ESS": "" if report.ratio_ess is None else f"{report.ratio_ess:.1%} of rollouts",
        "tokens": f"{report.tokens:,} ({report.tokens_per_problem:,.0f} per problem)",
        "seconds": f"{report.seconds:.1f}",
    }


def _models(report: EvalReport) -> dict[str, str]:
    return {"model": report.model} | ({} if report.proposal is None else {"proposal": report.proposal})


def _described(report: EvalReport) -> str:
    """Return the method with those of its settings that matter to it."""
    config = report.config
    details = []
    if report.method == "base":
        details.append(f"temperature {config.temperature:g}")
    elif report.method == "best_of_n":
        details.append(f"N {config.num_candidates}")
    else:
        rollouts = config.num_rollouts
        most = f"{rollouts[0]} to {rollouts[1]}" if isinstance(rollouts, tuple) else str(rollouts)
        details += [f"M {config.num_candidates}", f"K {most}", f"I {len(config.blocks)}", f"λ {config.kl_coef:g}"]
        if config.num_chains > 1:
            details.append(f"{config.num_chains} chains")
        if report.proposal is not None:
            details.append(config.estimator)
    if report.reward is not None:
        details.append(report.reward)
    return f"{report.method} ({', '.join(details)})"


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows as columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
