"""From a trace to what its page is drawn from: identical candidates once, the path from start to end, texts once."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from ets_agent.config import ETSConfig
from ets_agent.results import Result, RolloutTrace, StepTrace
from ets_agent.traces import Trace

_LEAD = 160
"""Characters of a response so far that are shown before what a rollout added to it."""


def page_data(trace: Trace) -> dict[str, Any]:
    """Return everything that the page shows, as JSON without infinities; texts are numbers of entries in ``texts``."""
    texts = _Once()
    groups = _Once()
    path = chosen_path(trace.steps)
    befores = texts_before(trace.steps)
    steps = [
        _step(step, before, place, texts, groups)
        for step, before, place in zip(trace.steps, befores, path, strict=True)
    ]
    blocks = [step.candidates[place] for step, place in zip(trace.steps, path, strict=True)]
    return {
        "id": trace.trace_id,
        "created": trace.created.isoformat(),
        "prompt": _messages(trace),
        "rewardName": trace.reward,
        "warnings": list(trace.warnings),
        "step": trace.step,
        "numSteps": trace.num_steps,
        "path": blocks,
        "result": None if trace.result is None else _result(trace, trace.result, "".join(blocks)),
        "steps": steps,
        "groups": groups.values,
        "texts": texts.values,
    }


def texts_before(steps: Sequence[StepTrace]) -> list[dict[int, str]]:
    """Return, for each step, the response of each chain before it."""
    befores: list[dict[int, str]] = []
    texts: dict[int, str] = {}
    for step in steps:
        befores.append(texts)
        texts = {
            chain: texts.get(_chain(step, place), "") + step.candidates[place]
            for chain, place in enumerate(step.kept or (step.chosen,))
        }
    return befores


def chosen_path(steps: Sequence[StepTrace]) -> list[int]:
    """Return the candidate of each step that led to the response.

    With one chain those are the chosen ones; of several chains, another one may have been ahead meanwhile.
    """
    path: list[int] = []
    chain: int | None = None
    for step in reversed(steps):
        place = step.kept[chain] if chain is not None and chain < len(step.kept) else step.chosen
        path.append(place)
        chain = _chain(step, place)
    return path[::-1]


class _Once:
    """Values by their numbers, equal ones under one."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[Any, int] = {}

    def place(self, key: object) -> int | None:
        return self._places.get(key)

    def add(self, value: Any, key: object = None) -> int:
        place = self._places.setdefault(value if key is None else key, len(self.values))
        if place == len(self.values):
            self.values.append(value)
        return place


def _chain(step: StepTrace, place: int) -> int:
    return step.chains[place] if step.chains else 0


def _messages(trace: Trace) -> list[dict[str, str]]:
    messages = [{"role": "user", "content": trace.prompt}] if isinstance(trace.prompt, str) else trace.prompt
    return [{"role": message.get("role", ""), "text": message.get("content", "")} for message in messages or [{}]]


def _step(step: StepTrace, before: dict[int, str], path: int, texts: _Once, groups: _Once) -> dict[str, Any]:
    """Return a step with its candidates in the order of the page: those in use, then by weight."""
    same: dict[Any, list[int]] = {}
    for place, text in enumerate(step.candidates):
        # Copies that do not share rollouts have energies of their own, and are shown one by one.
        key = (_chain(step, place), text, step.finished[place], step.log_energies[place], step.rollouts[place])
        same.setdefault(key, []).append(place)
    rows: list[dict[str, Any]] = []
    for places in same.values():
        first = places[0]
        prefix = before.get(_chain(step, first), "") + step.candidates[first]
        rows.append(
            {
                "number": first + 1,
                "count": len(places),
                "text": texts.add(step.candidates[first]),
                "weight": _number(math.fsum(step.weights[place] for place in places)),
                "logEnergy": _number(step.log_energies[first]),
                "error": _number(step.log_energy_errors[first]),
                "finished": step.finished[first],
                "path": path in places,
                "chosen": step.chosen in places,
                "chain": _chain(step, first),
                "kept": [chain for chain, place in enumerate(step.kept) if place in places],
                "group": _group(prefix, step.rollouts[first], texts, groups),
            }
        )
    rows.sort(key=lambda row: (not row["path"], not row["chosen"], not row["kept"], -row["weight"], row["number"]))
    check = step.diagnostics
    return {
        "step": step.step,
        "ess": _number(step.ess),
        "candidates": len(step.candidates),
        "chains": len(set(step.chains)) or 1,
        "numRollouts": step.num_rollouts,
        "dropped": step.dropped,
        "fallback": step.fallback,
        "resampled": step.resampled,
        "rolloutEss": _number(check.rollout_ess),
        "numJudged": check.num_judged,
        "largestShare": _number(check.largest_share),
        "selectionError": _number(check.selection_error),
        "ratioEss": _number(check.ratio_ess),
        "numRatios": check.num_ratios,
        "paretoK": _number(check.pareto_k),
        "verdict": check.verdict,
        "rows": rows,
    }


def _group(prefix: str, rollouts: tuple[RolloutTrace, ...], texts: _Once, groups: _Once) -> int:
    """Return the number of a candidate's rollouts; identical ones are told once, with their count."""
    known = groups.place((prefix, rollouts))
    if known is not None:
        return known
    entries: dict[str, dict[str, Any]] = {}
    for rollout in rollouts:
        # A block may end within a character, so that the response goes on a little before its end.
        shared = len(prefix) if rollout.text.startswith(prefix) else _shared(prefix, rollout.text)
        entry = {
            "cut": len(prefix) - shared,
            "text": texts.add(rollout.text[shared:]),
            "answer": rollout.answer,
            "reward": _number(rollout.reward),
            "logprob": _number(rollout.logprob),
            "logRatio": _number(rollout.log_ratio),
            "finish": rollout.finish_reason,
        }
        # The same response has log-probabilities that differ in the last bits, with the batch it was drawn in.
        key = json.dumps(entry | {name: _rounded(entry[name]) for name in ("logprob", "logRatio")})
        entries.setdefault(key, entry | {"count": 0})["count"] += 1
    lead = prefix[-_LEAD:]
    value = {"lead": texts.add(lead), "elided": len(prefix) > len(lead), "rollouts": list(entries.values())}
    return groups.add(value, (prefix, rollouts))


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    return next((place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(other))


def _result(trace: Trace, result: Result, path: str) -> dict[str, Any]:
    return {
        # What no step committed, because the run was cut short, comes from a rollout.
        "rest": result.text[len(path) :] if result.text.startswith(path) else "",
        "answer": result.answer,
        "reward": _number(result.reward),
        "confidence": _number(trace.confidence),
        "finish": result.finish_reason,
        "model": result.model,
        "proposal": result.proposal,
        "seed": str(result.seed),  # JavaScript has no integers beyond 2**53.
        "usage": result.usage.model_dump() | {"total_tokens": result.usage.total_tokens},
        "logNormalizer": _number(result.log_normalizer),
        "logNormalizerError": _number(result.log_normalizer_error),
        "settings": _settings(result.config),
    }


def _settings(config: ETSConfig) -> list[dict[str, str]]:
    """Return the settings that are in effect, with what they mean."""
    values = {name: value for name, value in config.model_dump(mode="json").items() if value not in (None, [])}
    return [
        {
            "name": name,
            "value": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
            "about": ETSConfig.model_fields[name].description or "",
        }
        for name, value in values.items()
    ]


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def _number(value: float | None) -> float | str | None:
    """Return a number with the digits that a page can show; infinities as JavaScript's ``Number`` reads them."""
    if value is None or math.isnan(value):
        return None
    return float(f"{value:.6g}") if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"
