"""A backend for tests that samples from a given list of responses: a real, tiny language model without a network.

The responses of a prompt, with their weights, form a tree of words; drawing walks it. So prefixes can be continued,
every log-probability is exact, and what an algorithm should return can be computed by hand.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from backends.base import Backend, Capabilities, Completion, Prompt, SamplingParams, State
from backends.contract import BackendContext, check_budget, check_counts, check_prompt, own_state, row_seeds
from backends.errors import BackendClosedError, BackendError, CapabilityError, ContextLengthError
from backends.sampled import sampled_log_probabilities
from backends.text import cut, settled

Responses = Mapping[str, float] | Sequence[str]
"""Responses with their weights, or a list; one that stands in it twice is twice as likely."""

_WORD = re.compile(r"\s*\S+|\s+")
_END = ""
"""The end-of-sequence token, which no word can be."""


@dataclass(slots=True)
class _Node:
    """A prefix in the tree of words; ``weight`` is that of all responses which begin with it."""

    weight: float = 0.0
    children: dict[str, _Node] = field(default_factory=dict)
    known: dict[str, float] | None = None

    def table(self, params: SamplingParams) -> dict[str, float]:
        """Return the next word's probabilities under the sampled distribution, truncated words left out.

        A tree serves one set of parameters, so the first answer holds.
        """
        if self.known is None:
            self.known = _sampled({word: child.weight for word, child in self.children.items()}, params)
        return self.known


@dataclass(frozen=True, kw_only=True)
class _ScriptedState(State):
    words: tuple[str, ...]
    root: _Node = field(repr=False, compare=False)
    params: SamplingParams
    max_tokens: int


class ScriptedBackend(BackendContext):
    """Samples from scripted responses, one word a token.

    Args:
        script: Responses to any prompt, or a function of the prompt that gives them.
        context: Most tokens of prompt and response together.
        delay: Seconds that every call takes; 0 does not even yield to the event loop.
        capabilities: What to claim.
    """

    def __init__(
        self,
        script: Responses | Callable[[Prompt], Responses],
        *,
        context: int = 1_000_000,
        delay: float = 0.0,
        capabilities: Capabilities = Capabilities(),  # noqa: B008 - frozen
    ) -> None:
        """Build no tree yet; they are built per prompt and parameters, a fixed script's only once for each."""
        self._script = script
        self._roots: dict[SamplingParams, _Node] = {}
        self._ids: dict[str, int] = {_END: 0}
        self._words = [_END]
        self._context = context
        self._delay = delay
        self._capabilities = capabilities
        self._closed = False
        self.calls = 0
        """Calls of `extend`, `rollout` and `score` so far."""
        self.active = 0
        """Calls under way."""

    @property
    def name(self) -> str:
        """The model's name."""
        return "scripted"

    @property
    def capabilities(self) -> Capabilities:
        """What this backend claims to do."""
        return self._capabilities

    @property
    def tokenization(self) -> None:
        """Unknown: words get ids as they come up, so no other backend shares them."""

    async def begin(self, prompt: Prompt, *, max_tokens: int, params: SamplingParams) -> State:
        """Return the empty response to a prompt; see `Backend.begin`."""
        if self._closed:
            raise BackendClosedError("the scripted backend is closed")
        check_prompt(prompt)
        check_budget(max_tokens)
        words = prompt if isinstance(prompt, str) else " ".join(message["content"] for message in prompt)
        length = len(_WORD.findall(words))
        if length + max_tokens > self._context:
            raise ContextLengthError(
                f"the prompt has {length} tokens and max_tokens is {max_tokens}; allowed: {self._context} together"
            )
        if callable(self._script):
            root = _plant(self._script(prompt))
        else:
            if params not in self._roots:
                self._roots[params] = _plant(self._script)
            root = self._roots[params]
        return _ScriptedState(words=(), root=root, params=params, max_tokens=max_tokens)

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        """Draw n successors of a state; see `Backend.extend`."""
        own = _own(state)
        check_counts(n, tokens)
        await self._work()
        if own.finished:
            return [own] * n
        return [self._draw(own, tokens, random.Random(row))[0] for row in row_seeds(seed, n)]

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        """Complete each state n times; see `Backend.rollout`."""
        own = [_own(state) for state in states]
        check_counts(n)
        await self._work()
        return [
            [self._complete(state, random.Random(row)) for row in row_seeds(seed, n, index)]
            for index, state in enumerate(own)
        ]

    def adopt(self, state: State, others: Sequence[State]) -> list[State]:
        """Refuse; see `tokenization`."""
        raise CapabilityError("the scripted backend cannot go on from states of other backends")

    async def score(self, states: Sequence[State], completions: Sequence[Sequence[Completion]]) -> list[list[float]]:
        """Return the log-probabilities of completions; see `Backend.score`."""
        own = [_own(state) for state in states]
        await self._work()
        return [
            [self._log_probability(state, completion.token_ids) for completion in group]
            for state, group in zip(own, completions, strict=True)
        ]

    async def aclose(self) -> None:
        """Refuse further calls."""
        self._closed = True

    async def _work(self) -> None:
        if self._closed:
            raise BackendClosedError("the scripted backend is closed")
        self.calls += 1
        if self._delay:
            self.active += 1
            try:
                await asyncio.sleep(self._delay)
            finally:
                self.active -= 1

    def _draw(self, state: _ScriptedState, tokens: int, rng: random.Random) -> tuple[_ScriptedState, float]:
        """Walk up to ``tokens`` words further; return the new state and the log-probability of the walk."""
        node, words, logprob, stop = _find(state), list(state.words), 0.0, state.params.stop
        end = min(len(words) + tokens, state.max_tokens)
        reason = state.finish_reason
        while reason is None and len(words) < end:
            table = node.table(state.params)
            word = next(iter(table)) if len(table) == 1 else rng.choices(list(table), list(table.values()))[0]
            logprob += math.log(table[word])
            words.append(word)
            node = node.children[word]
            if word == _END or (stop and any(string in "".join(words) for string in stop)):
                reason = "stop"
        if reason is None and len(words) == state.max_tokens:
            reason = "length"
        text = "".join(words)
        new = _ScriptedState(
            words=tuple(words),
            root=state.root,
            params=state.params,
            max_tokens=state.max_tokens,
            text=settled(text, stop) if reason is None else cut(text, stop),
            num_tokens=len(words),
            finish_reason=reason,
        )
        return new, logprob

    def _complete(self, state: _ScriptedState, rng: random.Random) -> Completion:
        final, logprob = self._draw(state, state.max_tokens, rng)
        assert final.finish_reason is not None
        ids = tuple(self._intern(word) for word in final.words[state.num_tokens :])
        return Completion(text=final.text, token_ids=ids, logprob=logprob, finish_reason=final.finish_reason)

    def _log_probability(self, state: _ScriptedState, token_ids: Iterable[int]) -> float:
        node, total = _find(state), 0.0
        for word in (self._words[token] for token in token_ids):
            probability = node.table(state.params).get(word, 0.0)
            if probability == 0:
                return -math.inf
            total += math.log(probability)
            node = node.children[word]
        return total

    def _intern(self, word: str) -> int:
        if word not in self._ids:
            self._ids[word] = len(self._words)
            self._words.append(word)
        return self._ids[word]


def _own(state: State) -> _ScriptedState:
    return own_state(state, _ScriptedState, "the scripted backend")


def _plant(responses: Responses) -> _Node:
    """Return the tree of the given responses."""
    weights = responses if isinstance(responses, Mapping) else Counter(responses)
    if not weights or min(weights.values()) <= 0:
        raise BackendError("a script needs at least one response, and weights above 0")
    root = _Node()
    for text, weight in weights.items():
        node = root
        for word in [*_WORD.findall(text), _END]:
            node.weight += weight
            node = node.children.setdefault(word, _Node())
        node.weight += weight
    return root


def _find(state: _ScriptedState) -> _Node:
    node = state.root
    for word in state.words:
        node = node.children[word]
    return node


def _sampled(weights: dict[str, float], params: SamplingParams) -> dict[str, float]:
    """Apply temperature, top-k and top-p to a distribution."""
    ranked = sorted(weights, key=lambda word: -weights[word])
    logits = np.log(np.array([weights[word] for word in ranked]))
    probabilities = np.exp(sampled_log_probabilities(logits, params)).tolist()
    return {word: probability for word, probability in zip(ranked, probabilities, strict=True) if probability > 0}


_: type[Backend] = ScriptedBackend
