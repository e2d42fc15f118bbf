"""Text in, text out, as every completion server does it; a prefix is sent as text and tokenized anew."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.base import Capabilities, Prompt, SamplingParams
from backends.endpoints import replies
from backends.endpoints.client import Client
from backends.endpoints.dialects import (
    INCOMPLETE,
    Draw,
    EncodedPrompt,
    EndpointState,
    failed_draw,
    refuse_high_temperature,
    refuse_top_k,
    sampling_fields,
)
from backends.errors import CapabilityError, PromptError
from backends.text import stop_end
from backends.tokenization import Tokenization


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutTokens:
    """What servers have in common that take and give no tokens.

    Attributes:
        client: The connection.
        model: The model's name on the server.
        capabilities: What was found out about the server.
        raw_logprobs: Whether the server's log-probabilities are those of the plain distribution.
        most_rows: Most continuations of one request.
        seeds: What the server's seeds are below; None where it takes none.
        neutral: Fields that say of what the server may have other defaults for that it changes nothing, as far as the
            server takes them.
    """

    client: Client
    model: str
    capabilities: Capabilities
    raw_logprobs: bool
    most_rows: int
    seeds: int | None
    neutral: Mapping[str, Any]

    @property
    def context(self) -> None:
        """Not known: the server counts tokens, not we."""

    @property
    def tokenization(self) -> Tokenization | None:
        """Not known."""
        return None

    def check(self, params: SamplingParams) -> None:
        """Refuse what the protocol has no field for."""
        refuse_high_temperature(params)
        refuse_top_k(params)

    def fields(self, state: EndpointState, n: int, *, seed: int) -> dict[str, Any]:
        """Return what requests of all kinds have in common."""
        return {
            "model": self.model,
            **({"n": n} if n > 1 else {}),
            **sampling_fields(state.params),
            **self.neutral,
            **({"seed": seed % self.seeds} if self.seeds is not None else {}),
        }

    async def score(self, state: EndpointState, rollouts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Refuse: text would be tokenized anew."""
        raise cannot_score(self.model)

    async def ends(self, state: EndpointState, token: int) -> bool:
        """Refuse, as `score` does."""
        raise cannot_score(self.model)

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    def check_open(self) -> None:
        """Refuse to be used after `aclose`."""
        self.client.check_open()


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDialect(WithoutTokens):
    """Plain text completions."""

    async def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Return a text as it is."""
        if not isinstance(prompt, str):
            raise PromptError(
                f"{self.model} is asked for text completions and its chat template is not known: give the prompt as "
                "text, or load the model with api='chat'"
            )
        return prompt

    async def draw(self, state: EndpointState, n: int, *, tokens: int, seed: int, logprobs: bool) -> list[Draw]:
        """Draw n continuations; see `Dialect.draw`."""
        assert isinstance(state.prompt, str)
        raw = state.raw or ""
        body = {
            **self.fields(state, n, seed=seed),
            "prompt": state.prompt + raw,
            "max_tokens": tokens,
            **({"logprobs": 0} if logprobs else {}),
        }
        choices = await self.client.post(
            "/completions",
            body,
            lambda answer: replies.completions(answer, n, budget=tokens, logprobs=logprobs, ids=False),
        )
        return [as_draw(raw, choice, state.params.stop) for choice in choices]


def as_draw(raw: str, choice: replies.Choice, stop: tuple[str, ...]) -> Draw:
    """Return a choice as a continuation of a text.

    A character that is not complete is left out, and drawn again. A stop string that began in the text before is seen
    here only.
    """
    if choice.error is not None:
        return failed_draw(choice)
    text = (raw + choice.text).rstrip(INCOMPLETE)
    end = stop_end(text, len(raw), stop)
    if end is None:
        return Draw(raw=text, num_tokens=choice.num_tokens, stopped=choice.stopped, logprobs=choice.logprobs)
    if choice.logprobs is None or len(choice.token_texts) != len(choice.logprobs):
        return Draw(raw=text[:end], num_tokens=choice.num_tokens, stopped=True, logprobs=choice.logprobs)
    lengths = itertools.accumulate(len(str(token)) for token in choice.token_texts)
    kept = min(sum(length < end - len(raw) for length in lengths) + 1, len(choice.logprobs))
    return Draw(raw=text[:end], num_tokens=kept, stopped=True, logprobs=choice.logprobs[:kept])


def cannot_score(model: str) -> CapabilityError:
    """Return the error for a server that takes no tokens."""
    return CapabilityError(f"{model} cannot score given tokens: its server takes text only")
