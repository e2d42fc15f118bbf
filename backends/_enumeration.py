"""The canvases of a finite language model: drawing on them, and listing all that can come of them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from backends.base import Completion, SamplingParams, State
from backends.errors import BackendError
from backends.sampled import Floats, sampled_log_probabilities
from backends.text import cut, settled

MASK = -1
"""What stands in a canvas where nothing is drawn yet."""

Canvas = tuple[int, ...]
"""Token ids by position, `MASK` where there is none; the vocabulary's last token ends a response."""

Logits = Callable[[Canvas, int], Floats]
"""The logits of a position given a canvas, shape (vocabulary,). An autoregressive model gets the tokens before it."""

_MOST_CANVASES = 2_000_000


@dataclass(frozen=True, kw_only=True)
class EnumerableState(State):
    """A partial response, with all that is known about its like."""

    tree: Tree = field(repr=False)


class Tree:
    """All that is known of a model under one set of sampling parameters and one budget.

    Args:
        logits: The model.
        vocabulary: Texts of the tokens, the end-of-sequence token last.
        diffusion: Whether positions are drawn in random order, not from left to right.
        params: Sampling parameters.
        max_tokens: Positions of a canvas.
    """

    def __init__(
        self, logits: Logits, vocabulary: Sequence[str], *, diffusion: bool, params: SamplingParams, max_tokens: int
    ) -> None:
        """Compute nothing yet; what has been computed is kept."""
        self._logits = logits
        self._vocabulary = vocabulary
        self._end = len(vocabulary) - 1
        self._diffusion = diffusion
        self._params = params
        self._length = max_tokens
        self._states: dict[Canvas, EnumerableState] = {}
        self._tables: dict[tuple[Canvas, int], tuple[list[float], list[float]]] = {}
        self._responses: dict[Canvas, dict[Completion, float]] = {}
        self._completions: dict[tuple[Canvas, Canvas, Canvas], Completion] = {}

    def __eq__(self, other: object) -> bool:
        """Trees of one setting are alike whoever made them, as far as states are compared by content."""
        return isinstance(other, Tree) and (self._params, self._length) == (other._params, other._length)

    def __hash__(self) -> int:
        """Agree with `__eq__`."""
        return hash((self._params, self._length))

    def check_size(self) -> None:
        """Raise `BackendError` where there are too many responses to list."""
        kinds = len(self._vocabulary) + self._diffusion
        if self._length * math.log(kinds) > math.log(_MOST_CANVASES):
            raise BackendError(f"{kinds}^{self._length} partial responses are too many to list; lower max_tokens")

    def canvas(self, state: State) -> Canvas:
        """Return the canvas of a state, also of another model's."""
        return state.token_ids + (MASK,) * (self._length - len(state.token_ids))

    def state(self, canvas: Canvas) -> EnumerableState:
        """Return the state with this canvas, always the same object."""
        known = self._states.get(canvas)
        if known is None:
            leading = canvas[: canvas.index(MASK)] if MASK in canvas else canvas
            before_end = leading[: leading.index(self._end)] if self._end in leading else leading
            text = "".join(self._vocabulary[token] for token in before_end)
            stop = self._params.stop
            ended = self._end in leading or any(string in text for string in stop)
            full = len(leading) == len(canvas)
            known = self._states[canvas] = EnumerableState(
                text=cut(text, stop) if ended or full else settled(text, stop),
                num_tokens=sum(token != MASK for token in canvas),
                token_ids=canvas if self._diffusion else leading,
                finish_reason="stop" if ended else "length" if full else None,
                tree=self,
            )
        return known

    def uniforms(self, n: int, seed: int, *path: int) -> list[list[float]]:
        """Return n rows of numbers in [0, 1), row i a function of seed, path and i alone."""
        stream = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=path)))
        rows: list[list[float]] = stream.random((n, 2 * self._length)).tolist()
        return rows

    def walk(self, canvas: Canvas, tokens: int, uniforms: Sequence[float]) -> tuple[Canvas, Canvas, float]:
        """Draw up to so many tokens; return the canvas, the positions drawn in order, and the log-probability."""
        positions: list[int] = []
        total = 0.0
        while len(positions) < tokens and not self.state(canvas).finished:
            choices = self._choices(canvas)
            position = choices[int(uniforms[2 * len(positions)] * len(choices))]
            bounds, log_probabilities = self._table(canvas, position)
            token = bisect_right(bounds, uniforms[2 * len(positions) + 1] * bounds[-1])
            total += log_probabilities[token]
            canvas = _placed(canvas, position, token)
            positions.append(position)
        return canvas, tuple(positions), total

    def completion(self, start: Canvas, uniforms: Sequence[float]) -> Completion:
        """Draw the rest of a response; equal draws give the same object."""
        canvas, positions, logprob = self.walk(start, self._length, uniforms)
        key = (start, canvas, positions)
        if key not in self._completions:
            final = self.state(canvas)
            assert final.finish_reason is not None
            self._completions[key] = Completion(
                text=final.text,
                token_ids=tuple(canvas[position] for position in positions),
                positions=positions if self._diffusion else (),
                logprob=logprob,
                finish_reason=final.finish_reason,
            )
        return self._completions[key]

    def log_probability(self, canvas: Canvas, completion: Completion) -> float:
        """Return the log-probability of the tokens; under diffusion at the positions that the completion gives."""
        count = len(completion.token_ids)
        first = self._length - canvas.count(MASK)
        positions = completion.positions if self._diffusion else range(first, first + count)
        if len(positions) != count:
            raise BackendError(f"a completion of a diffusion model gives {count} tokens but {len(positions)} positions")
        total = 0.0
        for position, token in zip(positions, completion.token_ids, strict=True):
            free = 0 <= position < self._length and canvas[position] == MASK
            if not free or self.state(canvas).finished or not 0 <= token < len(self._vocabulary):
                return -math.inf
            total += self._table(canvas, position)[1][token]
            canvas = _placed(canvas, position, token)
        return total

    def responses(self, canvas: Canvas) -> dict[Completion, float]:
        """Return the distribution of the response, the order of drawing averaged out."""
        known = self._responses.get(canvas)
        if known is None:
            known = self._responses[canvas] = {}
            state = self.state(canvas)
            if state.finish_reason is not None:
                known[Completion(text=state.text, finish_reason=state.finish_reason)] = 1.0
                return known
            choices = self._choices(canvas)
            for position in choices:
                for token, logprob in enumerate(self._table(canvas, position)[1]):
                    if logprob > -math.inf:
                        share = math.exp(logprob) / len(choices)
                        for response, rest in self.responses(_placed(canvas, position, token)).items():
                            known[response] = known.get(response, 0.0) + share * rest
        return known

    def _choices(self, canvas: Canvas) -> Sequence[int]:
        """Return the positions that may be drawn next, all equally likely."""
        if self._diffusion:
            return [position for position, token in enumerate(canvas) if token == MASK]
        return (canvas.index(MASK),)

    def _table(self, canvas: Canvas, position: int) -> tuple[list[float], list[float]]:
        """Return the bounds of the cumulative distribution of a position's token, and its log-probabilities."""
        known = self._tables.get((canvas, position))
        if known is None:
            seen = canvas if self._diffusion else canvas[:position]
            log_probabilities = sampled_log_probabilities(self._logits(seen, position), self._params)
            bounds = list(accumulate(np.exp(log_probabilities).tolist()))
            known = self._tables[canvas, position] = (bounds, log_probabilities.tolist())
        return known


def _placed(canvas: Canvas, position: int, token: int) -> Canvas:
    return (*canvas[:position], token, *canvas[position + 1 :])
