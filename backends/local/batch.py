"""Rows that decode together: who is in the batch, what each has drawn, when it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.base import Confidence, FinishReason, SamplingParams
from backends.errors import BackendError
from backends.local.cache import BatchCache, Prefix
from backends.local.model import Model
from backends.local.sampling import SampledDistribution, confidences, draw
from backends.local.text import Decoder


@dataclass(slots=True, eq=False, kw_only=True)
class Row:
    """One sequence to be drawn.

    Attributes:
        prefix: What it continues, prompt included; may be shared with other rows.
        response_ids: Tokens of the response before this row's.
        budget: Tokens to draw at most, at least 1.
        last: Whether the response is over when the budget is used up.
        params: Sampling parameters.
        uniforms: One number in [0, 1) per token of the budget, from the row's own stream.
        drawn: Tokens drawn so far.
        logprobs: Their log-probabilities (nats).
        confidence: How sure the model was of them, where the parameters ask for it.
        finish_reason: Why the response is over, once it is.
        successor: The sequence with all that was drawn, computed; only for a response that is not over.
    """

    prefix: Prefix
    response_ids: tuple[int, ...]
    budget: int
    last: bool
    params: SamplingParams
    uniforms: NDArray[np.float64]
    drawn: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    confidence: Confidence = field(default_factory=Confidence)
    finish_reason: FinishReason | None = None
    successor: Prefix | None = None
    _replayed: int = 0

    @property
    def spent(self) -> bool:
        """Whether nothing more is to be drawn."""
        return self.finish_reason is not None or len(self.drawn) == self.budget

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt, response and what was drawn so far."""
        return self.prefix.token_ids + tuple(self.drawn[self._replayed :])

    @property
    def length(self) -> int:
        """Tokens in the cache: all but the last one drawn, which waits to be fed."""
        return len(self.prefix.token_ids) + max(0, len(self.drawn) - self._replayed - 1)

    def restart(self) -> None:
        """Forget what is computed, not what is drawn: the row can join a batch again and goes on where it was."""
        if len(self.drawn) > self._replayed:
            self.prefix = Prefix(self.token_ids)
            self._replayed = len(self.drawn)


class Batch:
    """The rows that are decoding, and the buffers that they decode in.

    Args:
        model: The model.
        decoder: Finds where responses end.
    """

    def __init__(self, model: Model, decoder: Decoder) -> None:
        """Begin empty."""
        self.rows: list[Row] = []
        self._model = model
        self._decoder = decoder
        self._cache: BatchCache | None = None
        self._distribution: SampledDistribution | None = None

    def admit(self, rows: Sequence[Row]) -> list[Row]:
        """Take rows in, whose prefixes are computed, and draw their first tokens; return those done already."""
        done = [row for row in rows if row.spent]  # Only after a restart: all that was missing is the prefix.
        for row in done:
            row.successor = row.prefix
        fresh = [row for row in rows if not row.spent]
        if not fresh:
            return done
        logits = torch.stack([row.prefix.computed.logits for row in fresh if row.prefix.computed is not None])
        self._sample(fresh, logits, self._distribution_of(fresh))
        joining = [row for row in fresh if row.finish_reason is None]
        if joining:
            self._join(joining)
        return done + [row for row in fresh if row.finish_reason is not None]

    def step(self) -> list[Row]:
        """Feed every row its last token and draw the next; return the rows that are done, which have left."""
        rows, cache = self.rows, self._cache
        if not rows:
            return []
        assert cache is not None
        lengths = [row.length for row in rows]
        logits = self._model.step([row.drawn[-1] for row in rows], lengths, cache)
        closing = [index for index, row in enumerate(rows) if row.spent]
        if closing:
            for index in closing:
                begin = cache.cursor - lengths[index] - 1
                computed = cache.read(index, begin, cache.cursor, logits[index])
                rows[index].successor = Prefix(rows[index].token_ids, computed)
            drawing = [index for index, row in enumerate(rows) if not row.spent]
            if drawing:
                active = [rows[index] for index in drawing]
                self._sample(active, logits[drawing], self._distribution_of(active))
        else:
            if self._distribution is None:
                self._distribution = self._distribution_of(rows)
            self._sample(rows, logits, self._distribution)
        return self._remove(lambda row: row.successor is not None or row.finish_reason is not None)

    def discard(self, unwanted: Callable[[Row], bool]) -> None:
        """Let rows go whose results nobody waits for any more."""
        if any(map(unwanted, self.rows)):
            self._remove(unwanted)

    def clear(self) -> list[Row]:
        """Return all rows, ready to start again, and free the buffers."""
        rows, self.rows, self._cache, self._distribution = self.rows, [], None, None
        for row in rows:
            row.restart()
        return rows

    def _sample(self, rows: Sequence[Row], logits: Tensor, distribution: SampledDistribution) -> None:
        """Draw one token for each row from its own stream."""
        log_probabilities = distribution.log_probabilities(logits)
        uniforms = torch.from_numpy(np.array([row.uniforms[len(row.drawn)] for row in rows]))
        tokens = draw(log_probabilities, uniforms)
        chosen = log_probabilities.gather(1, tokens[:, None]).squeeze(1)
        logprobs = chosen.tolist()
        if any(map(math.isnan, logprobs)):
            raise BackendError("the model's logits are not numbers (NaN); try dtype='float32' or 'bfloat16'")
        if any(row.params.confidence for row in rows):
            own = log_probabilities if distribution.plain else logits.float().log_softmax(dim=-1)
            for row, confidence in zip(rows, confidences(own, tokens), strict=True):
                row.confidence += confidence
        for row, token, logprob in zip(rows, tokens.tolist(), logprobs, strict=True):
            row.drawn.append(token)
            row.logprobs.append(logprob)
            row.finish_reason = self._decoder.ends(row.response_ids, row.drawn, row.params.stop)
            if row.finish_reason is None and row.last and len(row.drawn) == row.budget:
                row.finish_reason = "length"

    def _distribution_of(self, rows: Sequence[Row]) -> SampledDistribution:
        return SampledDistribution([row.params for row in rows], self._model.device)

    def _join(self, rows: list[Row]) -> None:
        """Put rows into the buffers, in free places if they fit, else into new buffers."""
        everyone = self.rows + rows
        longest = max(row.length for row in everyone)
        ahead = max(row.budget - len(row.drawn) + 1 for row in everyone)
        cache = self._cache
        if cache is None or len(everyone) > cache.rows or longest > cache.cursor or cache.cursor + ahead > cache.length:
            template = rows[0].prefix.computed
            assert template is not None
            new = BatchCache(template, rows=len(everyone), length=longest + ahead)
            new.cursor = longest
            if cache is not None and self.rows:
                new.adopt(cache, rows=len(self.rows))
            self._cache = cache = new
        first = len(self.rows)
        while first < len(everyone):  # Rows of one prefix stand side by side and are written at once.
            prefix = everyone[first].prefix
            last = first + 1
            while last < len(everyone) and everyone[last].prefix is prefix:
                last += 1
            assert prefix.computed is not None
            cache.write(range(first, last), prefix.computed)
            first = last
        self.rows = everyone
        self._settle()

    def _remove(self, leaving: Callable[[Row], bool]) -> list[Row]:
        """Take rows out; the last ones move into their places."""
        staying = [index for index, row in enumerate(self.rows) if not leaving(row)]
        gone = [row for row in self.rows if leaving(row)]
        if not gone:
            return gone
        if not staying:
            self.rows, self._cache, self._distribution = [], None, None
            return gone
        assert self._cache is not None
        kept = len(staying)
        movers = [index for index in staying if index >= kept]
        holes = sorted(set(range(kept)) - set(staying))
        if movers:
            self._cache.move(movers, holes)
        for source, target in zip(movers, holes, strict=True):
            self.rows[target] = self.rows[source]
        del self.rows[kept:]
        self._settle()
        return gone

    def _settle(self) -> None:
        """Adjust what depends on who is in the batch: the common padding and the sampling parameters."""
        assert self._cache is not None
        self._cache.start = self._cache.cursor - max(row.length for row in self.rows)
        self._distribution = None
