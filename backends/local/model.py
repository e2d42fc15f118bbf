"""A loaded causal language model and the three forward passes that the engine needs of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    @property
    def vocabulary_size(self) -> int:
        """Tokens that the model has embeddings for; a tokenizer may know fewer."""
        return int(self.module.config.get_text_config(decoder=True).vocab_size)

    def release(self) -> None:
        """Let go of the weights; nothing can be computed afterwards."""
        if hasattr(self, "module"):
            del self.module

    def prefill(self, prefixes: Sequence[Prefix]) -> None:
        """Compute sequences that are not computed yet, several at once, each from its parent's cache if it has one.

        Rows are padded on the right: no position sees anything to its right, so no mask is needed.
        """
        missing = list({id(p): p for p in prefixes if p.computed is None}.values())
        parents = [p.parent for p in missing if p.parent is not None]
        if parents:
            self.prefill(parents)
        self._in_groups([p for p in missing if p.parent is None], self._prefill_group)
        self._in_groups([p for p in missing if p.parent is not None], self._prefill_rest)

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
        return self._continue(sequences, prefixes, keep=0)[0]

    def _continue(
        self, sequences: Sequence[Sequence[int]], prefixes: Sequence[Computed], *, keep: int | Tensor
    ) -> tuple[Tensor, BatchCache]:
        """Return the logits of the positions to keep, and the buffers; prefixes end at the cursor, rows begin there."""
        width, longest = max(map(len, sequences)), max(prefix.length for prefix in prefixes)
        cache = BatchCache(prefixes[0], rows=len(sequences), length=longest + width)
        cache.cursor = longest
        cache.start = 0
        for row, prefix in enumerate(prefixes):
            cache.write([row], prefix)
        padded = [[*sequence, *[0] * (width - len(sequence))] for sequence in sequences]
        self.forward_tokens += sum(map(len, sequences))
        return self._advance(padded, [prefix.length for prefix in prefixes], cache, keep=keep), cache

    def _in_groups(self, missing: list[Prefix], compute: Callable[[Sequence[Prefix]], None]) -> None:
        """Compute sequences in passes of bounded size, those of like length together."""
        missing.sort(key=lambda prefix: len(prefix.token_ids))
        while missing:
            longest = len(missing[-1].token_ids)
            group = missing[-max(1, _PREFILL_TOKENS // longest) :]
            del missing[-len(group) :]
            compute(group)

    def _prefill_rest(self, group: Sequence[Prefix]) -> None:
        """Compute what sequences have beyond their parents, which are computed."""
        parents = [prefix.parent.computed for prefix in group if prefix.parent is not None]
        known = [parent for parent in parents if parent is not None]
        rests = [prefix.token_ids[parent.length :] for prefix, parent in zip(group, known, strict=True)]
        ends = sorted({len(rest) - 1 for rest in rests})
        logits, cache = self._continue(rests, known, keep=self._kept(ends))
        for row, (prefix, parent, rest) in enumerate(zip(group, known, rests, strict=True)):
            begin, end = cache.cursor - parent.length, cache.cursor + len(rest)
            prefix.computed = cache.read(row, begin, end, logits[row, ends.index(len(rest) - 1)])
            prefix.parent = None  # Its cache may go when nobody else needs it.

    def _prefill_group(self, group: Sequence[Prefix]) -> None:
        width = len(group[-1].token_ids)
        ids = torch.tensor([[*p.token_ids, *[0] * (width - len(p.token_ids))] for p in group], device=self.device)
        ends = sorted({len(p.token_ids) - 1 for p in group})
        cache = DynamicCache()
        output = self._forward(
            input_ids=ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=self._kept(ends),
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

    def _kept(self, ends: Sequence[int]) -> int | Tensor:
        """Return which positions' logits are wanted: the last one's, where rows are of one length."""
        return torch.tensor(ends, device=self.device) if len(ends) > 1 else 1

    def _advance(
        self, tokens: Sequence[Sequence[int]], lengths: Sequence[int], cache: BatchCache, *, keep: int | Tensor
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
