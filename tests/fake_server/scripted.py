"""A model of scripted responses, drawn word by word with exact log-probabilities, for the fake server."""

from __future__ import annotations

import asyncio
import math
import random
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from backends.base import SamplingParams
from backends.sampled import sampled_log_probabilities
from backends.scripted import Responses
from tests.fake_server.models import Drawn, Entry, Model, Sampling, Step, find_stop

END, MARK = 0, 1
_SPECIAL = ("<|end|>", "<|response|>")
_BYTES = len(_SPECIAL)
_WORDS = _BYTES + 256
_WORD = re.compile(r"\s*\S+|\s+")
_PLAIN = SamplingParams()

_Key = tuple[float, float, int, float]


@dataclass(slots=True)
class _Table:
    """The next token at one node under one set of parameters; the most probable one first."""

    tokens: list[int]
    nodes: list[_Node]
    bounds: list[float]
    raw: list[float]
    sampled: list[float]
    steps: dict[tuple[bool, int], list[Step]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Node:
    """A beginning of responses; ``weight`` is that of all which begin so. One without children is left by the end."""

    weight: float = 0.0
    children: dict[int, _Node] = field(default_factory=dict)
    tables: dict[_Key, _Table] = field(default_factory=dict)


class ScriptedModel:
    """Answers every question with one of the given responses, one word a token, with exact log-probabilities.

    Words of the responses are tokens; anything else is spelled in bytes, so that servers of one script share their
    token ids. A special token marks where the response begins: `encode` puts it after the question. A prompt without
    it is searched for the longest end that a response can begin with; so the question must not end like that.

    Args:
        responses: Responses with their weights, or a list; one that stands in it twice is twice as likely.
        name: What requests call it.
        max_model_len: Most tokens of prompt and response together.
        delay: Seconds that every draw takes.
        end_text: What the token that ends a response says where a request wants to see what has ended it.

    Attributes:
        reasons: Responses that end for another reason than ``stop``, and what it is; they have no text then.
    """

    end_ids = frozenset({END})

    def __init__(
        self,
        responses: Responses,
        *,
        name: str = "scripted",
        max_model_len: int = 4096,
        delay: float = 0.0,
        end_text: str = "",
    ) -> None:
        """Build the tree of words."""
        weights = responses if isinstance(responses, Mapping) else Counter(responses)
        if not weights or min(weights.values()) <= 0:
            raise ValueError("a script needs at least one response, and weights above 0")
        self.name = name
        self.max_model_len = max_model_len
        self._delay = delay
        self.reasons: dict[str, str] = {}
        self._ids: dict[str, int] = {}
        self._texts = [end_text, "", *(bytes([value]).decode("utf-8", "replace") for value in range(256))]
        self._pieces = [text.encode() for text in _SPECIAL] + [bytes([value]) for value in range(256)]
        self._root = _Node()
        self._gone = _Node(weight=1.0)
        self._gone.children[END] = self._gone
        self._beginnings: dict[str, _Node] = {"": self._root}
        for text, weight in weights.items():
            self._plant(text, weight)
        self._lengths = sorted(set(map(len, self._beginnings)), reverse=True)

    @property
    def vocabulary_size(self) -> int:
        """Two special tokens, 256 bytes and the words of the responses."""
        return len(self._texts)

    @property
    def instant(self) -> bool:
        """Whether no delay was asked for."""
        return self._delay == 0

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return a text's tokens; with ``special``, the mark stands where the response begins."""
        question, mark, response = text.rpartition(_SPECIAL[MARK])
        if not mark:
            if not special:
                return self._spell(text)
            start = self._start(text)
            question, response = text[:start], text[start:]
        return [*self._spell(question), MARK, *self._spell(response)]

    def render(self, messages: Sequence[Mapping[str, str]], *, generation_prompt: bool, open_end: bool) -> list[int]:
        """Return the tokens of a chat, one message a line."""
        closed = messages[:-1] if open_end else messages
        ids = self._spell("".join(f"{message['role']}: {message['content']}\n" for message in closed))
        if open_end:
            return [*ids, MARK, *self._spell(messages[-1]["content"])]
        return [*ids, MARK] if generation_prompt else ids

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Return the text of tokens; unknown ones are nothing."""
        first = _BYTES if skip_special else 0
        return b"".join(self._pieces[i] for i in ids if first <= i < len(self._pieces)).decode("utf-8", "replace")

    def token_name(self, token: int) -> str:
        """Return a token's text, special ones by name."""
        return _SPECIAL[token] if token < _BYTES else self._texts[token]

    async def draw(
        self,
        prompt: Sequence[int],
        seeds: Sequence[int],
        *,
        sampling: Sampling,
        max_tokens: int,
        top: int | None,
        processed: bool,
    ) -> list[Drawn]:
        """Draw one row per seed; see `Model.draw`."""
        if self._delay:
            await asyncio.sleep(self._delay)
        node = self._find(prompt)
        greedy = sampling.greedy
        key = (0.0, 1.0, 0, 0.0) if greedy else (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)
        # What vLLM calls the processed log-probabilities of a greedy row are the model's own.
        told = None if top is None else (processed and not greedy, top)
        return [self._row(node, random.Random(seed % 2**64), key, sampling, max_tokens, told) for seed in seeds]

    async def score(self, prompt: Sequence[int], *, top: int) -> list[Step]:
        """Return the steps of a prompt: exact within the response; all tokens are alike in the question."""
        start = len(prompt) - 1 - prompt[::-1].index(MARK) if MARK in prompt else self._mark_by_text(prompt)
        size = self.vocabulary_size
        even = -math.log(size)
        steps = [self._step(Entry(token, even, size), [], top, even) for token in prompt[1 : start + 1]]
        node = self._root
        for token in prompt[max(1, start + 1) :]:
            table = self._table(node, (1.0, 1.0, 0, 0.0))
            if token in table.tokens:
                place = table.tokens.index(token)
                steps.append(self._steps(table, (False, top))[place])
                node = table.nodes[place]
            else:
                ranked = list(zip(table.tokens, table.raw, strict=True))
                steps.append(self._step(Entry(token, -math.inf, size), ranked, top, -math.inf))
                node = self._gone
        return steps

    async def aclose(self) -> None:
        """Hold nothing."""

    def _plant(self, text: str, weight: float) -> None:
        node, before = self._root, ""
        for word in _WORD.findall(text):
            node.weight += weight
            if word not in self._ids:
                self._ids[word] = len(self._texts)
                self._texts.append(word)
                self._pieces.append(word.encode())
            node = node.children.setdefault(self._ids[word], _Node())
            before += word
            self._beginnings[before] = node
        node.weight += weight
        final = node.children.setdefault(END, _Node(children={END: self._gone}))
        final.weight += weight

    def _spell(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in _WORD.findall(text):
            if word in self._ids:
                ids.append(self._ids[word])
            else:
                ids.extend(_BYTES + value for value in word.encode())
        return ids

    def _start(self, text: str) -> int:
        """Return where the response begins in a text: its longest end that some response begins with."""
        for length in self._lengths:
            if length <= len(text) and text[len(text) - length :] in self._beginnings:
                return len(text) - length
        return len(text)

    def _mark_by_text(self, prompt: Sequence[int]) -> int:
        """Return the place of the last token before the response, where no mark says it."""
        text = self.decode(prompt, skip_special=True)
        left, place = len(text[self._start(text) :].encode()), len(prompt) - 1
        while left > 0:
            left -= len(self._pieces[prompt[place]])
            place -= 1
        return place

    def _find(self, prompt: Sequence[int]) -> _Node:
        if MARK not in prompt:
            text = self.decode(prompt, skip_special=True)
            return self._beginnings[text[self._start(text) :]]
        node = self._root
        for token in prompt[len(prompt) - prompt[::-1].index(MARK) :]:
            node = node.children.get(token, self._gone)
        return node

    def _row(
        self,
        node: _Node,
        rng: random.Random,
        key: _Key,
        sampling: Sampling,
        max_tokens: int,
        told: tuple[bool, int] | None,
    ) -> Drawn:
        ids: list[int] = []
        steps: list[Step] = []
        text, uniform, texts = "", rng.random, self._texts
        for _ in range(max_tokens):
            table = node.tables.get(key) or self._table(node, key)
            place = bisect_right(table.bounds, uniform()) if table.bounds else 0
            token, node = table.tokens[place], table.nodes[place]
            ids.append(token)
            if told is not None:
                steps.append((table.steps.get(told) or self._steps(table, told))[place])
            if token == END and (why := self.reasons.get(text)):
                return Drawn(token_ids=ids, text="", finish_reason=why, steps=steps if told is not None else None)
            if token == END or token in sampling.stop_ids:
                reason = token if token in sampling.stop_ids and token != END else None
                text += texts[token] if sampling.include_stop else ""
                return Drawn(
                    token_ids=ids,
                    text=text,
                    finish_reason="stop",
                    stop_reason=reason,
                    steps=steps if told is not None else None,
                )
            before, text = len(text), text + texts[token]
            if sampling.stop and (found := find_stop(text, sampling.stop, include=sampling.include_stop, begin=before)):
                return Drawn(
                    token_ids=ids,
                    text=found[1],
                    finish_reason="stop",
                    stop_reason=found[0],
                    steps=steps if told is not None else None,
                )
        return Drawn(token_ids=ids, text=text, finish_reason="length", steps=steps if told is not None else None)

    def _table(self, node: _Node, key: _Key) -> _Table:
        if key in node.tables:
            return node.tables[key]
        temperature, top_p, top_k, min_p = key
        ranked = sorted(node.children.items(), key=lambda item: -item[1].weight)
        logits = np.log(np.array([child.weight for _, child in ranked]))
        raw = sampled_log_probabilities(logits, _PLAIN)
        # vLLM's min_p follows the temperature and comes before top-k and top-p; the most probable token always stays.
        if min_p > 0:
            logits = np.where(logits - logits[0] >= temperature * math.log(min_p), logits, -np.inf)
        sampled = sampled_log_probabilities(logits, SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k))
        # The last token that can be drawn has no upper bound, so that rounding cannot run past it.
        possible = int((sampled > -np.inf).sum())
        node.tables[key] = _Table(
            tokens=[token for token, _ in ranked],
            nodes=[child for _, child in ranked],
            bounds=np.cumsum(np.exp(sampled))[: possible - 1].tolist(),
            raw=raw.tolist(),
            sampled=sampled.tolist(),
        )
        return node.tables[key]

    def _steps(self, table: _Table, told: tuple[bool, int]) -> list[Step]:
        """Return the step of each token of a table."""
        if told not in table.steps:
            processed, top = told
            logprobs = table.sampled if processed else table.raw
            ranked = list(zip(table.tokens, logprobs, strict=True))
            table.steps[told] = [
                self._step(Entry(token, logprob, self._rank(logprob, logprobs)), ranked, top, -math.inf)
                for token, logprob in ranked
            ]
        return table.steps[told]

    def _step(self, chosen: Entry, ranked: list[tuple[int, float]], top: int, rest: float) -> Step:
        """Return a step; ``ranked`` are the tokens known to be the most probable, ``rest`` is what all others have."""
        wanted = self.vocabulary_size if top < 0 else top
        best = ranked[:wanted]
        if len(best) < wanted:
            known = {token for token, _ in best}
            others = (token for token in range(self.vocabulary_size) if token not in known)
            best = best + [(token, rest) for token, _ in zip(others, range(wanted - len(best)), strict=False)]
        entries = (Entry(token, logprob, rank) for rank, (token, logprob) in enumerate(best, 1))
        return (chosen, *(entry for entry in entries if entry.token != chosen.token))

    def _rank(self, logprob: float, logprobs: Sequence[float]) -> int:
        return self.vocabulary_size if logprob == -math.inf else sum(other >= logprob for other in logprobs)


_: type[Model] = ScriptedModel
