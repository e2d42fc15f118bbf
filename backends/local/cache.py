"""Key-value caches: `Prefix`, what is kept of one sequence, and `BatchCache`, the buffers that a batch decodes in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


@dataclass(slots=True)
class Computed:
    """All that the model has computed for one sequence.

    Attributes:
        keys: Per layer, shape (heads, tokens, dimension).
        values: The same for the values.
        logits: Of the next token, shape (vocabulary,).
    """

    keys: list[Tensor]
    values: list[Tensor]
    logits: Tensor

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self.keys[0].shape[1]


@dataclass(slots=True, eq=False)
class Prefix:
    """A sequence from which rows start; computed at most once, by whoever needs it first.

    States hold it, so a cache lives exactly as long as a state that can still be continued from it.

    Attributes:
        token_ids: The sequence.
        computed: What the model has computed for it, once it has.
        parent: A beginning of the sequence from whose cache the rest is computed, until it is.
    """

    token_ids: tuple[int, ...]
    computed: Computed | None = None
    parent: Prefix | None = None


@dataclass(slots=True)
class _Window:
    """The positions that are in use, from ``start`` to ``cursor``.

    Its layers know a batch by this alone: if they held the batch that holds them, replaced buffers, hundreds of
    megabytes under load, would stay until the garbage collector comes by.
    """

    start: int = 0
    cursor: int = 0


class _BufferLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's buffers. Writing goes to the batch's cursor, in place; reading gives what active rows can see."""

    is_sliding = False  # All positions are kept; the model's own mask cuts sliding windows out of them.
    keys: Tensor
    values: Tensor

    def __init__(self, window: _Window, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._window = window
        self.keys, self.values = keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Buffers are allocated by the batch."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values at the cursor; return all that are visible."""
        start, cursor = self._window.start, self._window.cursor
        rows, end = key_states.shape[0], cursor + key_states.shape[2]
        self.keys[:rows, :, cursor:end] = key_states
        self.values[:rows, :, cursor:end] = value_states
        return self.keys[:rows, :, start:end], self.values[:rows, :, start:end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many positions a query sees, and the first one's offset."""
        return self._window.cursor - self._window.start + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of positions before the query."""
        return self._window.cursor - self._window.start

    def get_max_length(self) -> int:
        """Return -1: the batch grows by making new buffers."""
        return -1


class BatchCache(Cache):
    """Preallocated buffers for a batch of rows, right-aligned at a common cursor.

    A row of n tokens occupies positions cursor - n to cursor; what lies left of it is padding. Nothing is concatenated
    while decoding, and a row that leaves is overwritten by the last one.

    Args:
        template: A computed sequence, for shapes, dtype and device.
        rows: Rows to allocate.
        length: Positions to allocate.
    """

    def __init__(self, template: Computed, *, rows: int, length: int) -> None:
        """Allocate zeros: padding is multiplied by attention weights of 0, so it must be finite."""
        self._window = _Window()
        self.rows = rows
        self.length = length
        self.buffers = [
            _BufferLayer(
                self._window,
                keys.new_zeros(rows, keys.shape[0], length, keys.shape[2]),
                values.new_zeros(rows, values.shape[0], length, values.shape[2]),
            )
            for keys, values in zip(template.keys, template.values, strict=True)
        ]
        super().__init__(layers=list(self.buffers))

    @property
    def start(self) -> int:
        """First position that any row uses."""
        return self._window.start

    @start.setter
    def start(self, position: int) -> None:
        self._window.start = position

    @property
    def cursor(self) -> int:
        """Position that is written next."""
        return self._window.cursor

    @cursor.setter
    def cursor(self, position: int) -> None:
        self._window.cursor = position

    def write(self, rows: Sequence[int], source: Computed) -> None:
        """Put one sequence into some rows, ending at the cursor."""
        first, last = rows[0], rows[-1] + 1
        begin = self.cursor - source.length
        for layer, keys, values in zip(self.buffers, source.keys, source.values, strict=True):
            layer.keys[first:last, :, begin : self.cursor] = keys
            layer.values[first:last, :, begin : self.cursor] = values

    def adopt(self, other: BatchCache, *, rows: int) -> None:
        """Take over the first rows of another batch's buffers, aligned to this one's cursor."""
        visible = slice(other.start, other.cursor)
        target = slice(self.cursor - (other.cursor - other.start), self.cursor)
        for mine, theirs in zip(self.buffers, other.buffers, strict=True):
            mine.keys[:rows, :, target] = theirs.keys[:rows, :, visible]
            mine.values[:rows, :, target] = theirs.values[:rows, :, visible]

    def read(self, row: int, begin: int, end: int, logits: Tensor) -> Computed:
        """Copy one row's positions out of the buffers, with the logits that follow them."""
        # A copy, so that a row which is kept does not keep the others alive.
        return Computed(
            [layer.keys[row, :, begin:end].clone() for layer in self.buffers],
            [layer.values[row, :, begin:end].clone() for layer in self.buffers],
            logits.clone(),
        )

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy rows over others, so that the rows in use stay contiguous."""
        for layer in self.buffers:
            device = layer.keys.device
            source, target = torch.tensor(sources, device=device), torch.tensor(targets, device=device)
            visible = slice(self.start, self.cursor)
            layer.keys[target, :, visible] = layer.keys[source, :, visible]
            layer.values[target, :, visible] = layer.values[source, :, visible]
