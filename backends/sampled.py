"""The sampled distribution (temperature, top-k, top-p) over a short list of tokens, for models without torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backends.base import SamplingParams

Floats = NDArray[np.float64]


def sampled_log_probabilities(logits: Floats, params: SamplingParams) -> Floats:
    """Return log-probabilities (nats) of the distribution that is sampled, shape (vocabulary,).

    As in transformers and vLLM, temperature comes first, then top-k, then top-p of what is left. Truncated tokens get
    minus infinity, and so do those whose logit is.
    """
    order = np.argsort(-logits, kind="stable")
    kept = np.zeros(len(logits), dtype=bool)
    if params.greedy:
        kept[order[0]] = True
        return np.where(kept, 0.0, -np.inf)
    with np.errstate(over="ignore"):
        scaled = (logits - logits[order[0]]) / params.temperature
    kept[order[: params.top_k or None]] = True
    if params.top_p < 1:
        ranked = np.exp(np.where(kept, scaled, -np.inf)[order])
        before = np.cumsum(ranked) - ranked
        kept[order[before >= params.top_p * ranked.sum()]] = False
    scaled = np.where(kept, scaled, -np.inf)
    normalized: Floats = scaled - np.log(np.exp(scaled).sum())
    return normalized
