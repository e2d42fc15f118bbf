"""`LocalBackend`: the backend contract on top of the engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backends.base import Backend, Capabilities, Completion, Confidence, FinishReason, Prompt, SamplingParams, State
from backends.contract import (
    BackendContext,
    as_completion,
    check_budget,
    check_continues,
    check_counts,
    check_prompt,
    is_count,
    own_state,
    row_seeds,
)
from backends.endings import ended_by, gone_past, refuse_other_endings
from backends.errors import BackendError, ContextLengthError, PromptError
from backends.local.batch import Row
from backends.local.cache import Prefix
from backends.local.engine import Engine, Scored
from backends.local.lengths import TokenLengths
from backends.local.loading import context_length, end_tokens, open_checkpoint
from backends.local.model import Model
from backends.local.text import Decoder
from backends.tokenization import Tokenization

T = TypeVar("T")

DEFAULT_MAX_ROWS = 256

_SHORT_CHARACTERS = 4096
"""Prompts up to this are tokenized in a few milliseconds."""


@dataclass(frozen=True, kw_only=True)
class _LocalState(State):
    """A partial response; the cache hangs on `prefix`, which plays no part in comparisons."""

    prompt_ids: tuple[int, ...] = field(repr=False)
    params: SamplingParams
    max_tokens: int
    prefix: Prefix = field(repr=False, compare=False)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)


class LocalBackend(BackendContext):
    """A causal language model on this machine, with exact log-probabilities under the sampled distribution.

    The prompt is computed once per run; candidates and rollouts share its cache, and the chosen candidate's is kept.
    All runs share one model, which works in its own thread: their rows decode in common batches.

    Args:
        model: A transformers causal language model, on its device.
        tokenizer: Its tokenizer.
        name: What to call it.
        max_rows: Most sequences to decode at the same time; halved whenever the device's memory runs out.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        max_rows: int = DEFAULT_MAX_ROWS,
    ) -> None:
        """Prepare the engine; its thread starts with the first call."""
        if not is_count(max_rows, 1):
            raise BackendError(f"max_rows is {max_rows!r}; allowed: a whole number of at least 1")
        self._name = name
        self._tokenizer = tokenizer
        self._tokenizer_lock = _lock(tokenizer)
        self._token_lengths = TokenLengths.of(tokenizer)
        self._context = context_length(model)
        self._end_tokens = end_tokens(model, tokenizer)
        self._decoder = Decoder(tokenizer, self._end_tokens)
        self._model = Model(model)
        self._embeddings = self._model.vocabulary_size
        self._engine = Engine(self._model, self._decoder, max_rows=max_rows)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        name: str | None = None,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        max_rows: int = DEFAULT_MAX_ROWS,
        revision: str | None = None,
    ) -> Self:
        """Load a checkpoint.

        Args:
            source: Hub id or folder.
            name: What to call it; by default the source.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
            dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``, or a torch dtype.
            max_rows: Most sequences to decode at the same time.
            revision: Branch, tag or commit on the hub.

        Raises:
            UnknownModelError: There is no such checkpoint.
            BackendError: It cannot be used here.
        """
        model, tokenizer = open_checkpoint(source, device=device, dtype=dtype, revision=revision)
        return cls(model, tokenizer, name=name or str(source), max_rows=max_rows)

    @property
    def name(self) -> str:
        """The model's name."""
        return self._name

    @cached_property
    def tokenization(self) -> Tokenization:
        """What the model's tokens mean."""
        with self._tokenizer_lock:
            return Tokenization.of(
                self._tokenizer.get_vocab(),
                lambda text: self._tokenizer(text, add_special_tokens=False)["input_ids"],
                self._end_tokens,
            )

    @property
    def capabilities(self) -> Capabilities:
        """Everything; chat where the tokenizer has a chat template."""
        return Capabilities(chat=self._tokenizer.chat_template is not None, confidence=True, entropy=True)

    async def begin(self, prompt: Prompt, *, max_tokens: int, params: SamplingParams) -> State:
        """Return the empty response to a prompt; see `backends.Backend.begin`."""
        self._engine.check_open()
        check_prompt(prompt)
        check_budget(max_tokens)
        if self._tokenizer.is_fast and _characters(prompt) <= _SHORT_CHARACTERS:
            ids = self._encode(prompt, max_tokens)  # Threads may all be at work on prompts that are not short.
        else:
            # A long prompt takes a while to tokenize; the event loop has other things to do.
            ids = await asyncio.to_thread(self._encode, prompt, max_tokens)
        if not ids:
            raise PromptError("the prompt has no tokens")
        self._check_length(len(ids), max_tokens, f"{len(ids)} tokens")
        return _LocalState(
            prompt_ids=ids,
            token_ids=(),
            params=params,
            max_tokens=max_tokens,
            prefix=Prefix(ids),
            confidence=Confidence() if params.confidence else None,
        )

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        """Draw n successors of a state; see `backends.Backend.extend`."""
        state = _own(state)
        check_counts(n, tokens)
        if state.finished:
            return [state] * n
        rows = [_row(state, tokens, row) for row in row_seeds(seed, n)]
        await _done(self._engine.draw(rows))
        return [self._successor(state, row) for row in rows]

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        """Complete each state n times; see `backends.Backend.rollout`."""
        check_counts(n)
        own = [_own(state) for state in states]
        rows = {
            index: [_row(state, state.max_tokens, row) for row in row_seeds(seed, n, index)]
            for index, state in enumerate(own)
            if not state.finished
        }
        if rows:
            await _done(self._engine.draw([row for group in rows.values() for row in group]))
        return [
            [self._completion(state, row) for row in rows[index]] if index in rows else [as_completion(state)] * n
            for index, state in enumerate(own)
        ]

    def adopt(self, state: State, others: Sequence[State]) -> list[State]:
        """Return this model's states for those of another; see `backends.Backend.adopt`."""
        own = _own(state)
        adopted: list[State] = []
        for other in others:
            ids = other.token_ids
            check_continues(own, other)
            # Models of one tokenizer may have more embeddings than it has tokens, and not equally many.
            if not all(0 <= token < self._embeddings for token in ids):
                raise BackendError(f"{self._name} has no embedding for one of the tokens {ids}")
            prefix = own.prefix if ids == own.token_ids else Prefix(own.prompt_ids + ids, parent=own.prefix)
            adopted.append(self._continued(own, ids, other.finish_reason, prefix, confidence=None))
        return adopted

    async def score(self, states: Sequence[State], completions: Sequence[Sequence[Completion]]) -> list[list[float]]:
        """Return the log-probabilities of completions; see `backends.Backend.score`.

        Raises:
            TokenizerMismatchError: Responses of the model that drew the completions end otherwise than this one's.
        """
        pairs = [
            (state, completion)
            for state, group in zip(map(_own, states), completions, strict=True)
            for completion in group
        ]
        refuse_other_endings(
            self._name,
            {token for state, drawn in pairs if (token := ended_by(drawn, state.params.stop)) is not None},
            {token for _, drawn in pairs for token in gone_past(drawn)},
            self._end_tokens.__contains__,
        )
        items = [Scored(state.prefix, completion.token_ids, state.params) for state, completion in pairs]
        flat = await _done(self._engine.score(items)) if items else []
        scores = iter(flat)
        return [[next(scores) for _ in group] for group in completions]

    async def aclose(self) -> None:
        """Stop the model's thread; what is under way fails with `BackendClosedError`."""
        await asyncio.to_thread(self._engine.close)
        self._model.release()

    def _encode(self, prompt: Prompt, max_tokens: int) -> tuple[int, ...]:
        """Return the tokens of a prompt, unless its length alone tells that they cannot fit."""
        text = prompt if isinstance(prompt, str) else self._render(prompt)
        if self._token_lengths is not None and len(text) > _SHORT_CHARACTERS:
            fewest = self._token_lengths.fewest(text)
            self._check_length(fewest, max_tokens, f"{len(text)} characters, which are at least {fewest} tokens,")
        with self._tokenizer_lock:
            return tuple(self._tokenizer(text, add_special_tokens=isinstance(prompt, str))["input_ids"])

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return a chat as text; special tokens are in it."""
        if self._tokenizer.chat_template is None:
            raise PromptError(f"{self._name} has no chat template; give the prompt as text")
        try:
            with self._tokenizer_lock:
                return str(
                    self._tokenizer.apply_chat_template(
                        [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
                    )
                )
        except Exception as error:  # Templates are programs of the checkpoint's author and raise what they like.
            raise PromptError(f"the chat template of {self._name} refuses these messages: {error}") from error

    def _check_length(self, tokens: int, max_tokens: int, size: str) -> None:
        if self._context is not None and tokens + max_tokens > self._context:
            raise ContextLengthError(
                f"the prompt has {size} and max_tokens is {max_tokens}; {self._name} allows {self._context} together"
            )

    def _successor(self, state: _LocalState, row: Row) -> _LocalState:
        ids = state.token_ids + tuple(row.drawn)
        prefix = row.successor or Prefix(state.prompt_ids + ids)
        return self._continued(state, ids, row.finish_reason, prefix, confidence=_confidence(state, row))

    def _continued(
        self,
        state: _LocalState,
        ids: tuple[int, ...],
        finish_reason: FinishReason | None,
        prefix: Prefix,
        *,
        confidence: Confidence | None,
    ) -> _LocalState:
        """Return a later state of the same response, with these tokens."""
        return replace(
            state,
            text=self._decoder.text(ids, state.params.stop, finished=finish_reason is not None),
            num_tokens=len(ids),
            token_ids=ids,
            finish_reason=finish_reason,
            prefix=prefix,
            confidence=confidence,
        )

    def _completion(self, state: _LocalState, row: Row) -> Completion:
        assert row.finish_reason is not None
        return Completion(
            text=self._decoder.text([*state.token_ids, *row.drawn], state.params.stop, finished=True),
            token_ids=tuple(row.drawn),
            logprob=float(sum(row.logprobs)),
            finish_reason=row.finish_reason,
            confidence=_confidence(state, row),
        )


def _lock(tokenizer: PreTrainedTokenizerBase) -> AbstractContextManager[object]:
    """Return what a call of the tokenizer holds: nothing if it works in parallel, as those in Rust do."""
    if not tokenizer.is_fast:
        return threading.Lock()
    backend = tokenizer.backend_tokenizer
    # The first call would do the same, while another one is under way.
    backend.no_truncation()
    backend.no_padding()
    return nullcontext()


def _characters(prompt: Prompt) -> int:
    """Return about how long a prompt is, whatever its messages hold."""
    return len(prompt) if isinstance(prompt, str) else sum(len(str(message)) for message in prompt)


def _own(state: State) -> _LocalState:
    return own_state(state, _LocalState, "a local model")


def _row(state: _LocalState, tokens: int, seed: int) -> Row:
    left = state.max_tokens - state.num_tokens
    budget = min(tokens, left)
    return Row(
        prefix=state.prefix,
        response_ids=state.token_ids,
        budget=budget,
        last=budget == left,
        params=state.params,
        # Philox is keyed directly: the seed is a hash already.
        uniforms=np.random.Generator(np.random.Philox(key=seed)).random(budget),
    )


def _confidence(state: _LocalState, row: Row) -> Confidence | None:
    return None if state.confidence is None else state.confidence + row.confidence


async def _done(future: Future[T]) -> T:
    """Await the engine; a cancelled wait cancels the work."""
    return await asyncio.wrap_future(future)


_: type[Backend] = LocalBackend
