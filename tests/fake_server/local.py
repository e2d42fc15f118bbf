"""An embedded or local model behind the fake server: the tokens and log-probabilities of `LocalBackend`, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from backends.base import SamplingParams
from backends.catalog import embedded_path
from backends.local import LocalBackend
from backends.local.batch import Row
from backends.local.cache import Prefix
from backends.local.sampling import SampledDistribution
from tests.fake_server.models import Drawn, Entry, Model, Sampling, Step, find_stop
from tests.fake_server.profiles import ApiError

_PLAIN = SamplingParams()
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class LocalModel:
    """Serves what a local backend would draw.

    It reaches into the backend, because the contract knows prompts and not token ids; tests may do that.

    Args:
        backend: Stays the caller's, who closes it.
        max_model_len: Most tokens of prompt and response together; by default the model's own.
    """

    instant = False

    def __init__(self, backend: LocalBackend, *, max_model_len: int | None = None) -> None:
        """Take a backend."""
        self._backend = backend
        self._owned = False
        self._tokenizer: Any = backend._tokenizer
        self.name = backend.name
        self.max_model_len = max_model_len or backend._context or 4096
        self.vocabulary_size = backend._model.vocabulary_size
        self.end_ids = backend._end_tokens

    @classmethod
    def load(cls, name: str, *, max_model_len: int | None = None) -> Self:
        """Load an embedded model, in float32 on the CPU; `aclose` frees it."""
        backend = LocalBackend.from_pretrained(embedded_path(name), name=name, device="cpu", dtype="float32")
        model = cls(backend, max_model_len=max_model_len)
        model._owned = True
        return model

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return a text's tokens."""
        with self._backend._tokenizer_lock:
            return list(self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def render(self, messages: Sequence[Mapping[str, str]], *, generation_prompt: bool, open_end: bool) -> list[int]:
        """Return the tokens of a chat, as the model's template has it."""
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=generation_prompt,
                continue_final_message=open_end,
            )
        except Exception as error:  # Templates raise what they like.
            raise ApiError(400, str(error)) from error
        return self.encode(text, special=False)

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Return the text of tokens; unknown ones are nothing."""
        known = [token for token in ids if token < self.vocabulary_size]
        return str(self._tokenizer.decode(known, skip_special_tokens=skip_special))

    def token_name(self, token: int) -> str:
        """Return the vocabulary's entry for a token."""
        return str(self._tokenizer.convert_ids_to_tokens(token))

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
        if sampling.min_p > 0:
            raise ApiError(400, "the fake server does not do min_p with a local model", param="min_p")
        temperature = 0.0 if sampling.greedy else sampling.temperature
        params = SamplingParams(temperature=temperature, top_p=sampling.top_p, top_k=sampling.top_k, stop=sampling.stop)
        prefix = Prefix(tuple(prompt))
        rows = [
            Row(
                prefix=prefix,
                response_ids=(),
                budget=max_tokens,
                last=True,
                params=params,
                uniforms=np.random.Generator(np.random.Philox(key=seed % 2**64)).random(max_tokens),
            )
            for seed in seeds
        ]
        await asyncio.wrap_future(self._backend._engine.draw(rows))
        drawn = [self._drawn(row, sampling, prompt) for row in rows]
        if top is None:
            return drawn
        # What vLLM calls the processed log-probabilities of a greedy row are the model's own.
        told = params if processed and not params.greedy else _PLAIN
        if top == 0 and told is params:
            for one, row in zip(drawn, rows, strict=True):
                pairs = zip(one.token_ids, row.logprobs, strict=False)
                one.steps = [(Entry(token, logprob, 1),) for token, logprob in pairs]
            return drawn
        steps = await asyncio.to_thread(self._steps, list(prompt), [one.token_ids for one in drawn], told, top)
        for one, its in zip(drawn, steps, strict=True):
            one.steps = its
        return drawn

    async def score(self, prompt: Sequence[int], *, top: int) -> list[Step]:
        """Return the steps of all tokens but the first; see `Model.score`."""
        if len(prompt) == 1:
            return []
        (steps,) = await asyncio.to_thread(self._steps, [prompt[0]], [list(prompt[1:])], _PLAIN, top)
        return steps

    async def aclose(self) -> None:
        """Close the backend, if `load` has made it."""
        if self._owned:
            await self._backend.aclose()

    def _drawn(self, row: Row, sampling: Sampling, prompt: Sequence[int]) -> Drawn:
        ids = list(row.drawn)
        # The engine knows the model's own end tokens only; what it has drawn after another one was never wanted.
        place = next((place for place, token in enumerate(ids) if token in sampling.stop_ids), None)
        if place is not None:
            ids = ids[: place + 1]
        ended = ids[-1] in self.end_ids or place is not None
        body = ids[:-1] if ended and not sampling.include_stop else ids
        if self.decode(prompt, skip_special=True).endswith(_INCOMPLETE):
            # vLLM decodes the prompt along with what completes its last character, and then knows no longer which text
            # is which: it tells both, and looks for stop strings in both.
            for count in range(1, len(body) + 1):
                text = self.decode([*prompt, *body[:count]], skip_special=True)
                if not text.endswith(_INCOMPLETE):
                    break
            else:
                text = ""
            if found := find_stop(text, sampling.stop, include=sampling.include_stop):
                return Drawn(token_ids=ids[:count], text=found[1], finish_reason="stop", stop_reason=found[0])
            text = text and self.decode([*prompt, *body], skip_special=True)
        else:
            text = self.decode(body, skip_special=True)
        text = text.rstrip(_INCOMPLETE)
        if found := find_stop(text, sampling.stop, include=sampling.include_stop):
            return Drawn(token_ids=ids, text=found[1], finish_reason="stop", stop_reason=found[0])
        if not ended:
            return Drawn(token_ids=ids, text=text, finish_reason="length")
        reason = None if ids[-1] == self._tokenizer.eos_token_id else ids[-1]
        return Drawn(token_ids=ids, text=text, finish_reason="stop", stop_reason=reason)

    def _steps(
        self, prompt: list[int], sequences: list[list[int]], params: SamplingParams, top: int
    ) -> list[list[Step]]:
        """Return the steps of sequences that follow a prompt, computed anew in one pass."""
        width = max(map(len, sequences))
        padded = [[*prompt, *sequence, *[0] * (width - len(sequence))] for sequence in sequences]
        with torch.inference_mode():
            # Padding is on the right, where no position sees it.
            logits = self._backend._model.module(
                input_ids=torch.tensor(padded), use_cache=False, logits_to_keep=width + 1
            ).logits
            return [
                self._row_steps(row[: len(sequence)], sequence, params, top)
                for row, sequence in zip(logits, sequences, strict=True)
            ]

    def _row_steps(self, logits: Tensor, sequence: list[int], params: SamplingParams, top: int) -> list[Step]:
        logprobs = SampledDistribution([params], logits.device).log_probabilities(logits)
        chosen = logprobs.gather(1, torch.tensor(sequence)[:, None])
        ranks = (logprobs >= chosen).sum(dim=1).tolist()
        best = logprobs.topk(logprobs.shape[1] if top < 0 else min(top, logprobs.shape[1]), dim=1)
        columns = zip(sequence, chosen[:, 0].tolist(), ranks, best.indices.tolist(), best.values.tolist(), strict=True)
        return [
            (
                Entry(token, logprob, rank),
                *(
                    Entry(other, value, place)
                    for place, (other, value) in enumerate(zip(tokens, values, strict=True), 1)
                    if other != token
                ),
            )
            for token, logprob, rank, tokens, values in columns
        ]


_: type[Model] = LocalModel
