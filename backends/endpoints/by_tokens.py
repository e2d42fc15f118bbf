"""Token ids in, token ids out, as vLLM does it: exact prefixes, exact log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.base import Capabilities, Prompt, SamplingParams
from backends.endpoints import replies
from backends.endpoints.client import Client
from backends.endpoints.dialects import (
    Draw,
    EncodedPrompt,
    EndpointState,
    as_messages,
    listed,
    refuse_high_temperature,
    sampling_fields,
)
from backends.errors import CapabilityError, EndpointError, PromptError
from backends.tokenization import Tokenization

SMALLEST_TEMPERATURE = 0.01
"""vLLM raises smaller ones to this."""

UNTRUNCATED: Mapping[str, Any] = {
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Sent always: a server may have other defaults, from the model's generation config, say."""

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


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
    """

    client: Client
    model: str
    capabilities: Capabilities
    tokenization: Tokenization | None
    context: int | None
    raw_logprobs: bool
    most_rows: int = 128

    def check(self, params: SamplingParams) -> None:
        """Refuse temperatures that the server would change, or refuse."""
        refuse_high_temperature(params)
        if 0 < params.temperature < SMALLEST_TEMPERATURE and not params.greedy:
            raise CapabilityError(
                f"the server raises a temperature of {params.temperature:g} to {SMALLEST_TEMPERATURE}; allowed: 0, or "
                f"at least {SMALLEST_TEMPERATURE}"
            )

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
        raw, split = await self._known_text(state)
        rows = 1 if state.params.greedy else n  # Greedy rows are all the same, and vLLM refuses to draw several.
        # The last token's text tells whether a block ends within a character.
        unfinished = state.num_tokens + tokens < state.max_tokens
        logprobs = logprobs or (unfinished and self.capabilities.logprobs)
        body = {
            "model": self.model,
            "prompt": [*_ids(state), *state.token_ids],
            "n": rows,
            "max_tokens": tokens,
            "seed": seed,
            "top_k": state.params.top_k,
            "return_token_ids": True,
            "include_stop_str_in_output": True,
            **sampling_fields(state.params),
            **UNTRUNCATED,
            **({"logprobs": 0} if logprobs else {}),
        }
        choices = await self.client.post(
            "/completions",
            body,
            lambda answer: replies.completions(answer, rows, budget=tokens, logprobs=logprobs, ids=True),
        )
        # One after the other: it is rare that anything has to be asked for, and a task for each would cost more.
        return [await self._finished(state, raw, choice, split=split) for choice in choices] * (n // rows)

    async def score(self, state: EndpointState, rollouts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Score given continuations; see `Dialect.score`."""
        body = {
            "model": self.model,
            "prompt": [[*_ids(state), *state.token_ids, *rollout] for rollout in rollouts],
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": 0,
        }
        return await self.client.post("/completions", body, lambda answer: replies.prompt_logprobs(answer, rollouts))

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    def check_open(self) -> None:
        """Refuse to be used after `aclose`."""
        self.client.check_open()

    async def _finished(self, state: EndpointState, raw: str, choice: replies.Choice, *, split: bool) -> Draw:
        """Return a choice as a continuation of a state with this text."""
        ids = choice.token_ids
        goes_on = not choice.stopped and state.num_tokens + len(ids) < state.max_tokens
        if split or (goes_on and not _whole(choice.last_token)):
            # A server decodes what it draws and nothing before; only all tokens together give the text of a character
            # that began in one request and ends in another.
            text = await self._decoded([*state.token_ids, *(ids[:-1] if choice.stopped else ids)])
        else:
            text = raw + choice.text
        end = _crossing(text, len(raw), state.params.stop)
        if end is None:
            return Draw(
                raw=text.rstrip(_INCOMPLETE),
                num_tokens=len(ids),
                stopped=choice.stopped,
                token_ids=ids,
                logprobs=choice.logprobs,
                split=text.endswith(_INCOMPLETE),
            )
        kept = await self._tokens_until(state, ids, end)
        logprobs = None if choice.logprobs is None else choice.logprobs[:kept]
        return Draw(raw=text[:end], num_tokens=kept, stopped=True, token_ids=ids[:kept], logprobs=logprobs)

    async def _tokens_until(self, state: EndpointState, ids: Sequence[int], end: int) -> int:
        """Return how many of the drawn tokens it takes to have ``end`` characters of the response.

        The server does not see a stop string that began in the prefix, and goes on after it.
        """
        low, high = 1, len(ids)
        while low < high:
            middle = (low + high) // 2
            text = await self._decoded([*state.token_ids, *ids[:middle]])
            low, high = (low, middle) if len(text.rstrip(_INCOMPLETE)) >= end else (middle + 1, high)
        return low

    async def _known_text(self, state: EndpointState) -> tuple[str, bool]:
        """Return the text of a state, which has to be asked for where the state was adopted."""
        if state.raw is not None:
            return state.raw, state.split
        text = await self._decoded(state.token_ids)
        return text.rstrip(_INCOMPLETE), text.endswith(_INCOMPLETE)

    async def _decoded(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        return await self.client.post("//detokenize", {"model": self.model, "tokens": list(ids)}, replies.text)


def _ids(state: EndpointState) -> Sequence[int]:
    return [token for token in state.prompt if isinstance(token, int)]


def _whole(token: str | None) -> bool:
    """Whether a token's text shows that no character is left open after it; None does not."""
    return bool(token) and not str(token).endswith(_INCOMPLETE)


def _crossing(text: str, begin: int, stop: tuple[str, ...]) -> int | None:
    """Return where the first stop string ends that begins before ``begin`` and ends after it."""
    ends = []
    for string in stop:
        place = text.find(string, max(0, begin - len(string) + 1), begin + len(string) - 1)
        if place >= 0:
            ends.append(place + len(string))
    return min(ends, default=None)
