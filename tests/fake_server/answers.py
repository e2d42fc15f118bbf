"""From a checked request to the answer's body: lengths, draws, scores, and the shapes in which they are told."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.fake_server.models import Drawn, Entry, Model, Sampling, Step
from tests.fake_server.profiles import ApiError, Profile
from tests.fake_server.requests import ChatRequest, CompletionRequest, Generation

_FINGERPRINT = "vllm-0.32.0-fake"
_FLOOR = -9999.0
"""What minus infinity becomes, since JSON has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Answers generation requests.

    Attributes:
        processed: Whether log-probabilities are of the sampled distribution (vLLM's ``processed_logprobs``) or of the
            model's own. Those of prompts are always the model's own.
        most_tokens: Most tokens of a response, whatever is asked for; None for as many as fit.
        reasoning: So many tokens at the beginning of a chat's answer are reasoning, which is not part of its content.
    """

    model: Model
    profile: Profile
    processed: bool
    most_tokens: int | None = None
    reasoning: int = 0
    texts: dict[int, str] = field(default_factory=dict, repr=False)
    """Of single tokens, as they come up."""

    async def completion(self, request: CompletionRequest, request_id: str) -> dict[str, Any]:
        """Return the answer to a request to /v1/completions."""
        assert request.max_tokens is not None
        prompts = self._prompts(request)
        sampling = request.sampling()
        top = request.logprobs if self.profile.logprobs else None
        scored = request.prompt_logprobs if self.profile.vllm else None
        if scored is None and request.echo:
            scored = top
        self._check_top("sample logprobs", "logprobs", top)
        self._check_top("prompt logprobs", "prompt_logprobs", scored)
        bare = bool(request.echo) and request.max_tokens == 0
        budgets = [1 if bare else self._budget(request.max_tokens, len(prompt)) for prompt, _ in prompts]
        choices: list[dict[str, Any]] = []
        drawn = 0
        for (prompt, before), budget in zip(prompts, budgets, strict=True):
            rows = await self._draw(prompt, request, sampling, budget, top)
            steps = None if scored is None else await self.model.score(prompt, top=scored)
            told = None if steps is None else [None, *(self._as_mapping(step) for step in steps)]
            for row in rows:
                ids, row_steps, text = row.token_ids, row.steps, row.text
                if request.echo:
                    ids, text = ([*prompt], before) if bare else ([*prompt, *ids], before + text)
                    if top is not None:
                        assert steps is not None
                        row_steps = steps if bare else [*steps, *(row.steps or [])]
                logprobs = None
                if top is not None:
                    assert row_steps is not None
                    logprobs = self._completion_logprobs(
                        ids, row_steps, top, echo=bool(request.echo), as_ids=bool(request.return_tokens_as_token_ids)
                    )
                choice = {
                    "index": len(choices),
                    "text": text,
                    "logprobs": logprobs,
                    "finish_reason": row.finish_reason,
                }
                if self.profile.vllm:
                    choice |= {
                        "stop_reason": row.stop_reason,
                        "token_ids": row.token_ids if request.return_token_ids else None,
                        "prompt_logprobs": told,
                        "prompt_token_ids": prompt if request.return_token_ids else None,
                        "routed_experts": None,
                    }
                choices.append(choice)
                drawn += len(row.token_ids)
        length = sum(len(prompt) for prompt, _ in prompts)
        answer = self._frame("text_completion", f"cmpl-{request_id}", choices, length, drawn)
        if self.profile.vllm:
            answer |= {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}
        return answer

    async def chat(self, request: ChatRequest, request_id: str) -> dict[str, Any]:
        """Return the answer to a request to /v1/chat/completions."""
        prompt = self.model.render(
            [{"role": message.role, "content": message.content} for message in request.messages],
            generation_prompt=request.add_generation_prompt,
            open_end=request.continue_final_message,
        )
        self._check_length(len(prompt))
        sampling = request.sampling()
        top = (request.top_logprobs or 0) if request.logprobs and self.profile.logprobs else None
        scored = request.prompt_logprobs if self.profile.vllm else None
        self._check_top("sample logprobs", "logprobs", top)
        self._check_top("prompt logprobs", "prompt_logprobs", scored)
        wanted = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
        rows = await self._draw(prompt, request, sampling, self._budget(wanted, len(prompt)), top)
        steps = None if scored is None else await self.model.score(prompt, top=scored)
        choices = []
        for index, row in enumerate(rows):
            content = self._content(row)
            message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None, "annotations": None}
            if self.profile.vllm:
                message |= {"audio": None, "function_call": None, "reasoning": None}
            logprobs = None if top is None else {"content": self._chat_logprobs(row, top)}
            choice: dict[str, Any] = {
                "index": index,
                "message": message,
                "logprobs": logprobs,
                "finish_reason": row.finish_reason,
            }
            if self.profile.vllm:
                ids = row.token_ids if request.return_token_ids else None
                choice |= {"stop_reason": row.stop_reason, "token_ids": ids, "routed_experts": None}
            choices.append(choice)
        drawn = sum(len(row.token_ids) for row in rows)
        answer = self._frame("chat.completion", f"chatcmpl-{request_id}", choices, len(prompt), drawn)
        if self.profile.vllm:
            answer |= {
                "prompt_logprobs": None if steps is None else [None, *map(self._as_mapping, steps)],
                "prompt_token_ids": prompt if request.return_token_ids else None,
                "prompt_text": None,
                "kv_transfer_params": None,
                "ec_transfer_params": None,
                "metrics": None,
            }
        return answer

    async def _draw(
        self, prompt: list[int], request: Generation, sampling: Sampling, budget: int, top: int | None
    ) -> list[Drawn]:
        count = 1 if self.profile.n == "ignored" else request.count
        if request.allowed_token_ids is not None:
            return [self._forced(request.allowed_token_ids[0], budget)] * count
        # As in vLLM, row k has the seed's k-th successor.
        first = random.getrandbits(64) if request.seed is None else request.seed
        seeds = range(first, first + count)
        return await self.model.draw(
            prompt, seeds, sampling=sampling, max_tokens=budget, top=top, processed=self.processed
        )

    def _forced(self, token: int, budget: int) -> Drawn:
        """Return a row where only one token may be drawn; its log-probabilities are not told."""
        if token >= self.model.vocabulary_size:
            raise ApiError(400, f"allowed_token_ids contains out-of-vocab token id {token}!", param="allowed_token_ids")
        if token in self.model.end_ids:
            return Drawn(token_ids=[token], text="", finish_reason="stop")
        ids = [token] * budget
        return Drawn(token_ids=ids, text=self.model.decode(ids, skip_special=True), finish_reason="length")

    def _prompts(self, request: CompletionRequest) -> list[tuple[list[int], str]]:
        """Return each prompt's tokens, inside the vocabulary and not too many, and its text where it is echoed."""
        given: Any = request.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            given = [given]
        if not given:
            raise ApiError(400, "You must pass at least one prompt")
        prompts = []
        for prompt in given:
            text = isinstance(prompt, str)
            ids = self.model.encode(prompt, special=request.add_special_tokens) if text else prompt
            if not ids:
                raise ApiError(400, "The decoder prompt cannot be empty")
            self._check_length(len(ids), text=text)
            if max(ids) >= self.model.vocabulary_size:
                raise ApiError(400, f"Token id {max(ids)} is out of vocabulary")
            echoed = ""
            if request.echo and not request.return_token_ids:
                echoed = prompt if text else self.model.decode(ids, skip_special=False)
            prompts.append((ids, echoed))
        return prompts

    def _check_length(self, length: int, *, text: bool = False) -> None:
        most = self.model.max_model_len
        if length <= most:
            return
        if not self.profile.vllm:
            raise ApiError(
                400,
                f"This model's maximum context length is {most} tokens. However, your messages resulted in {length} "
                "tokens. Please reduce the length of the messages.",
                param="messages" if self.profile.chat else "prompt",
                code="context_length_exceeded",
            )
        # vLLM stops counting a text's tokens where there are too many.
        length, at_least = (most + 1, "at least ") if text else (length, "")
        raise ApiError(
            400,
            f"This model's maximum context length is {most} tokens. However, your prompt contains {at_least}{length} "
            "input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the "
            f"input prompt. (parameter=input_tokens, value={length})",
            param="input_tokens",
        )

    def _budget(self, wanted: int | None, length: int) -> int:
        """Return how many tokens may be drawn: what is wanted, or as many of them as fit."""
        most = self.model.max_model_len
        if wanted is not None and wanted > most:
            raise ApiError(
                400,
                f"max_tokens={wanted} cannot be greater than max_model_len={most}. Please request fewer output tokens. "
                f"(parameter=max_tokens, value={wanted})",
                param="max_tokens",
            )
        budget = most - length if wanted is None else min(wanted, most - length)
        if self.most_tokens is not None:
            budget = min(budget, self.most_tokens)
        if budget < 1:
            message = f"max_tokens must be at least 1, got {budget}. (parameter=max_tokens, value={budget})"
            raise ApiError(400, message, param="max_tokens")
        return budget

    def _check_top(self, what: str, param: str, top: int | None) -> None:
        most = self.profile.max_logprobs
        if top is None or most == -1:
            return
        count = self.model.vocabulary_size if top < 0 else top
        if count > most:
            raise ApiError(
                400,
                f"Requested {what} of {count}, which is greater than max allowed: {most} "
                f"(parameter={param}, value={count})",
                param=param,
            )

    def _completion_logprobs(
        self, ids: Sequence[int], steps: Sequence[Step], top: int, *, echo: bool, as_ids: bool
    ) -> dict[str, Any]:
        """Return the log-probabilities of tokens; of an echoed prompt, the first has none."""
        if not self.profile.end_in_logprobs and ids[-1] in self.model.end_ids:
            ids, steps = ids[:-1], steps[:-1]
        told: list[Step | None] = [None, *steps] if echo else [*steps]
        names, logprobs, tops, offsets, offset = [], [], [], [], 0
        for token, step in zip(ids, told, strict=True):
            name = self._text(token, as_ids)
            names.append(name)
            offsets.append(offset)
            offset += len(name)
            logprobs.append(None if step is None else max(step[0].logprob, _FLOOR))
            tops.append(
                None
                if step is None
                # The chosen token, and as many of the most probable ones as were asked for.
                else {
                    self._text(entry.token, as_ids): max(entry.logprob, _FLOOR)
                    for entry in (step if top < 0 else step[: top + 1])
                }
            )
        return {"text_offset": offsets, "token_logprobs": logprobs, "tokens": names, "top_logprobs": tops}

    def _content(self, row: Drawn) -> str:
        """Return an answer without its reasoning."""
        if not self.reasoning:
            return row.text
        return row.text.removeprefix(self.model.decode(row.token_ids[: self.reasoning], skip_special=True)).lstrip()

    def _chat_logprobs(self, row: Drawn, top: int) -> list[dict[str, Any]]:
        assert row.steps is not None
        steps = row.steps[self.reasoning :]
        if steps and not self.profile.end_in_logprobs and row.token_ids[-1] in self.model.end_ids:
            steps = steps[:-1]
        return [
            self._chat_logprob(step[0])
            | {"top_logprobs": [self._chat_logprob(entry) for entry in self._listed(step)[: None if top < 0 else top]]}
            for step in steps
        ]

    def _listed(self, step: Step) -> Sequence[Entry]:
        """Return the alternatives of a position: vLLM puts the chosen token first, OpenAI the most probable one."""
        return step if self.profile.vllm else sorted(step, key=lambda entry: entry.rank)

    def _chat_logprob(self, entry: Entry) -> dict[str, Any]:
        text = self._text(entry.token, as_ids=False)
        return {"token": text, "logprob": max(entry.logprob, _FLOOR), "bytes": list(text.encode())}

    def _as_mapping(self, step: Step) -> dict[str, dict[str, Any]]:
        """Return a step as vLLM tells it of prompts."""
        return {
            str(entry.token): {
                "logprob": max(entry.logprob, _FLOOR),
                "rank": entry.rank,
                "decoded_token": self._text(entry.token, as_ids=False),
            }
            for entry in step
        }

    def _text(self, token: int, as_ids: bool) -> str:
        if as_ids:
            return f"token_id:{token}"
        text = self.texts.get(token)
        if text is None:
            text = self.texts[token] = self.model.decode([token], skip_special=False)
        return text

    def _frame(self, kind: str, name: str, choices: list[dict[str, Any]], prompt: int, drawn: int) -> dict[str, Any]:
        usage: dict[str, Any] = {"prompt_tokens": prompt, "total_tokens": prompt + drawn, "completion_tokens": drawn}
        if self.profile.vllm:
            usage |= {"prompt_tokens_details": None, "completion_tokens_details": None}
        return {
            "id": name,
            "object": kind,
            "created": int(time.time()),
            "model": self.model.name,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": _FINGERPRINT if self.profile.vllm else None,
            "usage": usage,
        }
