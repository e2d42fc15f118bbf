"""From logits to draws: the sampled distribution (temperature, top-k, top-p), in float32, and inverse-CDF sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from backends.base import Confidence, SamplingParams


class SampledDistribution:
    """Turns logits into log-probabilities of the distribution that is sampled, each row under its own parameters.

    Args:
        params: Sampling parameters, one per row.
        device: Where the logits are.
    """

    def __init__(self, params: Sequence[SamplingParams], device: torch.device) -> None:
        """Put the parameters into columns; what no row needs is not computed later."""
        self._temperature: Tensor | None = None
        self._greedy: Tensor | None = None
        self._top_k: Tensor | None = None
        self._top_p: Tensor | None = None
        greedy = [p.greedy for p in params]
        if any(p.temperature != 1 for p in params):
            temperatures = [1.0 if best else p.temperature for p, best in zip(params, greedy, strict=True)]
            self._temperature = torch.tensor(temperatures, device=device)[:, None]
        if any(greedy):
            self._greedy = torch.tensor(greedy, device=device)[:, None]
        if any(p.top_k > 0 for p in params):
            most = torch.iinfo(torch.int32).max
            limits = [min(p.top_k or most, most) for p in params]
            self._top_k = torch.tensor(limits, device=device)[:, None]
        if any(p.top_p < 1 for p in params):
            # Infinity, not 1: a cumulative sum may round up to 1 and drop the tail.
            masses = [p.top_p if p.top_p < 1 else float("inf") for p in params]
            self._top_p = torch.tensor(masses, device=device)[:, None]

    @property
    def plain(self) -> bool:
        """Whether this is the model's own distribution, for all rows."""
        return all(column is None for column in (self._temperature, self._greedy, self._top_k, self._top_p))

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return log-probabilities (nats, float32) for logits of shape (rows, vocabulary).

        Truncated tokens get minus infinity. As in transformers and vLLM, temperature comes first, then top-k, then
        top-p of what is left.
        """
        logits = logits.float()
        if self._temperature is not None:
            # The largest becomes 0 first, so that a small temperature cannot make it overflow.
            logits = (logits - logits.amax(dim=-1, keepdim=True)) / self._temperature
        if self._greedy is not None:
            best = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, logits.argmax(dim=-1, keepdim=True), True)
            logits = logits.masked_fill(self._greedy & ~best, -torch.inf)
        if self._top_k is not None or self._top_p is not None:
            logits = self._truncate(logits)
        return logits.log_softmax(dim=-1)

    def _truncate(self, logits: Tensor) -> Tensor:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        dropped = torch.zeros_like(ordered, dtype=torch.bool)
        if self._top_k is not None:
            dropped |= torch.arange(ordered.shape[-1], device=ordered.device) >= self._top_k
        if self._top_p is not None:
            probabilities = ordered.masked_fill(dropped, -torch.inf).softmax(dim=-1)
            before = probabilities.cumsum(dim=-1) - probabilities
            dropped |= before >= self._top_p
            dropped[:, 0] = False
        return logits.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)


def draw(log_probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token per row by inverting the cumulative distribution; a token of probability 0 is never drawn.

    Args:
        log_probabilities: Shape (rows, vocabulary).
        uniforms: One number in [0, 1) per row, from the row's own stream.
    """
    precise = torch.float32 if log_probabilities.device.type == "mps" else torch.float64
    bounds = log_probabilities.to(precise).exp_().cumsum_(dim=-1)
    total = bounds[:, -1:]
    # Converted before it moves: mps has no float64.
    target = uniforms.to(precise).to(total.device)[:, None] * total
    # Strictly below the total, so that rounding cannot run past the last token with any probability.
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    # The clamp matters for NaN only, whose place is past the end; the log-probability then tells the caller.
    return torch.searchsorted(bounds, target, right=True).squeeze(1).clamp_(max=bounds.shape[-1] - 1)


def confidences(log_probabilities: Tensor, tokens: Tensor) -> list[Confidence]:
    """Return each row's confidence in its next token; entries of minus infinity are no tokens of the vocabulary.

    Args:
        log_probabilities: Those of the model's own distribution (nats), shape (rows, vocabulary).
        tokens: What was drawn, shape (rows,).
    """
    possible = log_probabilities > -torch.inf
    finite = log_probabilities.masked_fill(~possible, 0.0)
    sizes = possible.sum(dim=-1)
    logprobs = log_probabilities.gather(1, tokens[:, None]).squeeze(1)
    entropies = -(finite * log_probabilities.exp()).sum(dim=-1)
    certainties = -finite.sum(dim=-1) / sizes - sizes.log()
    columns = zip(logprobs.tolist(), entropies.tolist(), certainties.tolist(), strict=True)
    return [
        Confidence(num_tokens=1, logprob=logprob, entropy=entropy, self_certainty=certainty)
        for logprob, entropy, certainty in columns
    ]
