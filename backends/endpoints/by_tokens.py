"""Token ids in, token ids out, as vLLM does it: exact prefixes, exact log-probabilities."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from backends.base import Capabilities, Prompt, SamplingParams
from backends.endpoints import replies
from backends.endpoints.client import Client
from backends.endpoints.decoding import Detokenizer, Seam, looks_special
from backends.endpoints.dialects import (
    INCOMPLETE,
    NEUTRAL,
    Draw,
    EncodedPrompt,
    EndpointState,
    as_messages,
    failed_draw,
    ids_of,
    listed,
    refuse_temperature,
    sampling_fields,
)
from backends.errors import EndpointError, PromptError
from backends.service import Service
from backends.text import stop_end
from backends.tokenization import Tokenization

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDialect:
    """Completions of token ids, which the server also returns.

    Attributes:
        client: The connection.
        model: The model's name on the server.
        capabilities: What was found out about the server.
        tokenization: What its tokens mean.
        context: Most tokens of prompt and response together.
        raw_logprobs: Whether the server's log-probabilities are those of the plain distribution.
        most_rows: Most continuations of one request.
        texts: Asks for the text of tokens that several requests have drawn.
    """

    client: Client
    model: str
    capabilities: Capabilities
    tokenization: Tokenization | None
    context: int | None
    raw_logprobs: bool
    most_rows: int = 128
    texts: Detokenizer = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Use the same connection for texts."""
        object.__setattr__(self, "texts", Detokenizer(client=self.client, model=self.model))

    @property
    def service(self) -> Service:
        """The server; no other than vLLM is asked this way."""
        return Service.at(self.client.url, provider="vllm", model=self.model)

    def check(self, params: SamplingParams) -> None:
        """Refuse temperatures that the server would change, or refuse."""
        refuse_temperature(params)

    async def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Have the server tokenize a prompt, through its chat template if it is a chat."""
        fields = {"prompt": prompt} if isinstance(prompt, str) else {"messages": listed(as_messages(prompt))}
        try:
            ids = await self.client.post("//tokenize", {"model": self.model, **fields}, replies.tokens)
        except EndpointError as error:
            if error.status in {400, 422}:
                raise PromptError(f"the server cannot tokenize the prompt: {error}") from error
            raise
        if not ids:
            raise PromptError("the prompt has no tokens")
        return ids

    async def draw(self, state: EndpointState, n: int, *, tokens: int, seed: int, logprobs: bool) -> list[Draw]:
        """Draw n continuations; see `Dialect.draw`."""
        raw, split = await self.texts.known(state)
        # After part of a character, vLLM decodes the prompt once more, and would find stop strings in the question.
        params = replace(state.params, stop=()) if split else state.params
        # The last token's text tells whether a block ends within a character.
        unfinished = state.num_tokens + tokens < state.max_tokens
        logprobs = logprobs or (unfinished and self.capabilities.logprobs)
        body = {
            "model": self.model,
            "prompt": [*ids_of(state), *state.token_ids],
            "n": n,
            "max_tokens": tokens,
            "seed": seed,
            "top_k": params.top_k,
            "return_token_ids": True,
            **sampling_fields(params),
            **NEUTRAL,
            **({"logprobs": 0} if logprobs else {}),
        }
        choices = await self.client.post(
            "/completions",
            body,
            lambda answer: replies.completions(answer, n, budget=tokens, logprobs=logprobs, ids=True),
        )
        seam = await self.texts.at(state.token_ids, raw) if split else None
        # One after the other: it is rare that anything has to be asked for, and a task for each would cost more.
        return [await self._finished(state, raw, choice, seam) for choice in choices]

    async def score(self, state: EndpointState, rollouts: Sequence[Sequence[int]]) -> list[replies.Told]:
        """Score given continuations; see `Dialect.score`."""
        body = {
            "model": self.model,
            "prompt": [[*ids_of(state), *state.token_ids, *rollout] for rollout in rollouts],
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": 0,
        }
        return await self.client.post("/completions", body, lambda answer: replies.prompt_logprobs(answer, rollouts))

    async def ends(self, state: EndpointState, token: int) -> bool | None:
        """Whether the server stops where it has to draw this token; see `Dialect.ends`."""
        body = {
            "model": self.model,
            "prompt": ids_of(state),
            "max_tokens": 2,
            "allowed_token_ids": [token],
            "return_token_ids": True,
        }
        try:
            (drawn,) = await self.client.post(
                "/completions", body, lambda answer: replies.completions(answer, 1, budget=2, logprobs=False, ids=True)
            )
        except EndpointError as error:
            if error.status not in {400, 422}:
                raise
            _log.debug("whether token %d ends a response of %s is not known: %s", token, self.model, error)
            return None
        return drawn.token_ids != (token, token)

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    def check_open(self) -> None:
        """Refuse to be used after `aclose`."""
        self.client.check_open()

    async def _finished(self, state: EndpointState, raw: str, choice: replies.Choice, seam: Seam | None) -> Draw:
        """Return a choice as a continuation of a state with this text, which ends within a character at a seam."""
        if choice.error is not None:
            return failed_draw(choice)
        ids = choice.token_ids
        if seam is not None:
            # The token that ended it has no text.
            text = await seam.text(ids[:-1] if choice.stopped and choice.stop is None else ids, choice.text)
            split = text.endswith(INCOMPLETE)
        else:
            text = raw + choice.text + (choice.stop or "")
            goes_on = not choice.stopped and state.num_tokens + len(ids) < state.max_tokens
            split = goes_on and not _whole(choice.token_texts) and await self.texts.splits([*state.token_ids, *ids])
        text = text.rstrip(INCOMPLETE)
        end = stop_end(text, len(raw), state.params.stop)
        if end is None or (end == len(text) and choice.stop is not None):
            return Draw(
                raw=text,
                num_tokens=len(ids),
                stopped=choice.stopped,
                token_ids=ids,
                logprobs=choice.logprobs,
                split=split,
            )
        # The server did not see it, and went on.
        seam = seam or await self.texts.at(state.token_ids, raw)
        kept = await seam.tokens_until(ids, end)
        logprobs = None if choice.logprobs is None else choice.logprobs[:kept]
        return Draw(raw=text[:end], num_tokens=kept, stopped=True, token_ids=ids[:kept], logprobs=logprobs)


def _whole(token_texts: Sequence[Any]) -> bool:
    """Whether the last token's text shows that no character is left open after it; no text, or a mark, does not."""
    last = str(token_texts[-1]) if token_texts and token_texts[-1] else INCOMPLETE
    return not last.endswith(INCOMPLETE) and not looks_special(last)
