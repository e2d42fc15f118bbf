"""Chat messages in, whole answers out: a response cannot be continued, only drawn as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from backends.base import Capabilities, Prompt, SamplingParams
from backends.endpoints import replies
from backends.endpoints.by_text import as_draw, cannot_score
from backends.endpoints.client import Client
from backends.endpoints.dialects import (
    Draw,
    EncodedPrompt,
    EndpointState,
    as_messages,
    listed,
    refuse_high_temperature,
    refuse_top_k,
    sampling_fields,
)
from backends.tokenization import Tokenization

BudgetField = Literal["max_tokens", "max_completion_tokens"]
"""What a server calls the budget; OpenAI's reasoning models know the second name only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatDialect:
    """Chat completions.

    Attributes:
        client: The connection.
        model: The model's name on the server.
        capabilities: What was found out about the server.
        raw_logprobs: Whether the server's log-probabilities are those of the plain distribution.
        most_rows: Most answers of one request.
        budget_field: What the server calls the budget.
    """

    client: Client
    model: str
    capabilities: Capabilities
    raw_logprobs: bool
    most_rows: int
    budget_field: BudgetField = "max_tokens"

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

    async def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Return chat messages; a text is what the user says."""
        return as_messages(prompt)

    async def draw(self, state: EndpointState, n: int, *, tokens: int, seed: int, logprobs: bool) -> list[Draw]:
        """Draw n answers; see `Dialect.draw`."""
        assert isinstance(state.prompt, tuple)
        body = {
            "model": self.model,
            "messages": listed([message for message in state.prompt if isinstance(message, tuple)]),
            "n": n,
            self.budget_field: tokens,
            **sampling_fields(state.params),
            **({"seed": seed} if self.capabilities.seed else {}),
            **({"logprobs": True} if logprobs else {}),
        }
        if n == 1:
            del body["n"]
        choices = await self.client.post(
            "/chat/completions", body, lambda answer: replies.chats(answer, n, budget=tokens, logprobs=logprobs)
        )
        return [as_draw("", choice) for choice in choices]

    async def score(self, state: EndpointState, rollouts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Refuse: text would be tokenized anew."""
        raise cannot_score(self.model)

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    def check_open(self) -> None:
        """Refuse to be used after `aclose`."""
        self.client.check_open()
