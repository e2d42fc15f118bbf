"""Runs made by hand, for files and pages of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from ets_agent import Diagnostics, ETSConfig, Result, RolloutTrace, StepTrace, Usage

DIAGNOSTICS = Diagnostics(rollout_ess=6.5, largest_share=0.2, selection_error=0.07)


def rollout(text: str, **fields: Any) -> RolloutTrace:
    answer = text.rpartition("#### ")[2] if "#### " in text else None
    return RolloutTrace(
        **{"text": text, "answer": answer, "reward": 0.5, "logprob": -7.25, "finish_reason": "stop"} | fields
    )


def step(number: int, candidates: Sequence[str], weights: Sequence[float], **fields: Any) -> StepTrace:
    """Return a step of unfinished candidates, chosen the first, that say what was not given."""
    count = len(candidates)
    values: dict[str, Any] = {
        "step": number,
        "candidates": tuple(candidates),
        "finished": (False,) * count,
        "log_energies": tuple(math.log(weight) if weight > 0 else -math.inf for weight in weights),
        "log_energy_errors": tuple(0.25 if weight > 0 else None for weight in weights),
        "weights": tuple(weights),
        "ess": 1 / sum(weight**2 for weight in weights),
        "chosen": 0,
        "chains": (0,) * count,
        "num_rollouts": 2,
        "diagnostics": DIAGNOSTICS,
        "rollouts": tuple((rollout(f"{text}… #### 1"), rollout(f"{text}… #### 2", reward=None)) for text in candidates),
    }
    values |= fields
    values.setdefault("kept", (values["chosen"],))
    return StepTrace(**values)


def result(text: str, steps: Sequence[StepTrace], **fields: Any) -> Result:
    values: dict[str, Any] = {
        "text": text,
        "answer": "1",
        "reward": 0.75,
        "finish_reason": "stop",
        "steps": tuple(steps),
        "usage": Usage(candidate_tokens=100, rollout_tokens=900, seconds=1.5),
        "seed": 2**48,
        "model": "tiny/qwen3",
        "config": ETSConfig(),
    }
    return Result(**values | fields)


texts = st.text(max_size=12)
numbers = st.floats(allow_nan=False)
shares = st.floats(0, 1)
rollouts = st.builds(
    RolloutTrace,
    text=texts,
    answer=st.none() | texts,
    reward=st.none() | numbers,
    logprob=st.none() | numbers,
    log_ratio=st.none() | numbers,
    finish_reason=st.sampled_from(["stop", "length", "error"]),
)


@st.composite
def steps(draw: st.DrawFn) -> StepTrace:
    count = draw(st.integers(1, 4))

    def each(values: st.SearchStrategy[Any]) -> tuple[Any, ...]:
        return tuple(draw(st.lists(values, min_size=count, max_size=count)))

    return StepTrace(
        step=draw(st.integers(1, 99)),
        candidates=each(texts),
        finished=each(st.booleans()),
        log_energies=each(numbers),
        log_energy_errors=each(st.none() | numbers),
        weights=each(shares),
        ess=draw(st.floats(1, 4)),
        chosen=draw(st.integers(0, count - 1)),
        chains=each(st.integers(0, 3)),
        kept=each(st.integers(0, count - 1)),
        resampled=draw(st.booleans()),
        num_rollouts=draw(st.integers(0, 9)),
        diagnostics=draw(
            st.builds(
                Diagnostics,
                rollout_ess=numbers,
                largest_share=shares,
                selection_error=shares,
                pareto_k=st.none() | numbers,
                verdict=st.none() | texts,
            )
        ),
        rollouts=each(st.lists(rollouts, max_size=3).map(tuple)),
        fallback=draw(st.sampled_from([None, "equal_rewards", "zero_energies", "no_verdict"])),
        dropped=draw(st.integers(0, 9)),
    )


results = st.builds(
    Result,
    text=texts,
    answer=st.none() | texts,
    reward=st.none() | numbers,
    finish_reason=st.sampled_from(["stop", "length", "timeout", "budget"]),
    steps=st.lists(steps(), max_size=3).map(tuple),
    usage=st.builds(Usage, candidate_tokens=st.integers(0), seconds=st.floats(0, 1e9)),
    seed=st.integers(0, 2**70),
    log_normalizer=st.none() | numbers,
    log_normalizer_error=st.none() | numbers,
    model=texts,
    proposal=st.none() | texts,
    config=st.builds(ETSConfig, num_candidates=st.integers(1, 99), stop=st.lists(st.text(min_size=1)).map(tuple)),
    warnings=st.lists(texts, max_size=2),
)
messages = st.lists(st.fixed_dictionaries({"role": texts, "content": texts}), min_size=1, max_size=3)
prompts = texts | messages
