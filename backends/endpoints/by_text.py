"""Text in, text out, as every completion server does it; a prefix is sent as text and tokenized anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backends.base import Capabilities, Prompt, SamplingParams
from backends.endpoints import replies
from backends.endpoints.client import Client
from backends.endpoints.dialects import (
    Draw,
    EncodedPrompt,
    EndpointState,
    refuse_high_temperature,
    refuse_top_k,
    sampling_fields,
)
from backends.errors import CapabilityError, PromptError
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
    """

    client: Client
    model: str
    capabilities: Capabilities
    raw_logprobs: bool
    most_rows: int

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

    async def score(self, state: EndpointState, rollouts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Refuse: text would be tokenized anew."""
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
            "model": self.model,
            "prompt": state.prompt + raw,
            "n": n,
            "max_tokens": tokens,
            **sampling_fields(state.params),
            **({"seed": seed} if self.capabilities.seed else {}),
            **({"logprobs": 0} if logprobs else {}),
        }
        if n == 1:
            del body["n"]
        choices = await self.client.post(
            "/completions",
            body,
            lambda answer: replies.completions(answer, n, budget=tokens, logprobs=logprobs, ids=False),
        )
        return [as_draw(raw, choice) for choice in choices]


def as_draw(raw: str, choice: replies.Choice) -> Draw:
    """Return a choice as a continuation of a text."""
    return Draw(raw=raw + choice.text, num_tokens=choice.num_tokens, stopped=choice.stopped, logprobs=choice.logprobs)


def cannot_score(model: str) -> CapabilityError:
    """Return the error for a server that takes no tokens."""
    return CapabilityError(f"{model} cannot score given tokens: its server takes text only")
