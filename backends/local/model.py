"""A loaded causal language model and the three forward passes that the engine needs of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from backends.local.cache import BatchCache, Computed, Prefix

_PREFILL_TOKENS = 8192
"""Padded tokens of one prefill pass; longer prompts go alone."""


@dataclass(slots=True)
class Model:
    """A causal language model in evaluation mode, and what its calls cost so far.

    Attributes:
        module: The transformers model.
        forward_tokens: Tokens put through the model so far, padding left out.
    """

    module: PreTrainedModel
    forward_tokens: int = 0

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.module.device
        return device

    def release(self) -> None:
        """Let go of the weights; nothing can be computed afterwards."""
        if hasattr(self, "module"):
            del self.module

    def prefill(self, prefixes: Sequence[Prefix]) -> None:
        """Compute sequences that are not computed yet, several at once.

        Rows are padded on the right: no position sees anything to its right, so no mask is needed.
        """
        missing = sorted({id(p): p for p in prefixes if p.computed is None}.values(), key=lambda p: len(p.token_ids))
        while missing:
            longest = len(missing[-1].token_ids)
            group = missing[-max(1, _PREFILL_TOKENS // longest) :]
            del missing[-len(group) :]
            self._prefill_group(group)

    def step(self, tokens: Sequence[int], lengths: Sequence[int], cache: BatchCache) -> Tensor:
        """Feed one token per row; return the logits of the next, shape (rows, vocabulary), and advance the cursor."""
        logits = self._advance([[token] for token in tokens], lengths, cache, keep=1)[:, -1]
        cache.cursor += 1
        self.forward_tokens += len(tokens)
        return logits

    def continuations(self, sequences: Sequence[Sequence[int]], prefixes: Sequence[Computed]) -> Tensor:
        """Feed several tokens per row after its prefix; return all logits, shape (rows, longest, vocabulary).

        Shorter rows are padded on the right; what stands there means nothing.
        """
        width, longest = max(map(len, sequences)), max(prefix.length for prefix in prefixes)
        cache = BatchCache(prefixes[0], rows=len(sequences), length=longest + width)
        cache.cursor = longest
        cache.start = 0
        for row, prefix in enumerate(prefixes):
            cache.write([row], prefix)
        padded = [[*sequence, *[0] * (width - len(sequence))] for sequence in sequences]
        self.forward_tokens += sum(map(len, sequences))
        return self._advance(padded, [prefix.length for prefix in prefixes], cache, keep=0)

    def _prefill_group(self, group: Sequence[Prefix]) -> None:
        width = len(group[-1].token_ids)
        ids = torch.tensor([[*p.token_ids, *[0] * (width - len(p.token_ids))] for p in group], device=self.device)
        ends = sorted({len(p.token_ids) - 1 for p in group})
        cache = DynamicCache()
        output = self._forward(
            input_ids=ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.tensor(ends, device=self.device) if len(ends) > 1 else 1,
        )
        layers: list[Any] = cache.layers
        for row, prefix in enumerate(group):
            length = len(prefix.token_ids)
            prefix.computed = Computed(
                [layer.keys[row, :, :length].clone() for layer in layers],
                [layer.values[row, :, :length].clone() for layer in layers],
                output.logits[row, ends.index(length - 1)].clone(),
            )
            self.forward_tokens += length

    def _advance(
        self, tokens: Sequence[Sequence[int]], lengths: Sequence[int], cache: BatchCache, *, keep: int
    ) -> Tensor:
        """Run the model on tokens that follow rows of the given lengths, which end at the cache's cursor."""
        before, width = cache.cursor - cache.start, len(tokens[0])
        ids = torch.tensor(tokens, device=self.device)
        offsets = torch.tensor(lengths, device=self.device)[:, None]
        mask = None
        if min(lengths) < before:
            mask = torch.arange(before + width, device=self.device) >= before - offsets
        logits: Tensor = self._forward(
            input_ids=ids,
            attention_mask=mask,
            position_ids=offsets + torch.arange(width, device=self.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        return logits

    def _forward(self, **inputs: Any) -> Any:
        """Run the model; the only place that does, so that it can be timed and made to fail."""
        return self.module(**inputs)
