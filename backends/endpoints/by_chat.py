"""Chat messages in, whole answers out: a response cannot be continued, only drawn as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from backends.base import Prompt
from backends.endpoints import replies
from backends.endpoints.dialects import Draw, EncodedPrompt, EndpointState, as_messages, messages_of
from backends.endpoints.without_tokens import ProbedWithoutTokens, as_draw

BudgetField = Literal["max_tokens", "max_completion_tokens"]
"""What a server calls the budget; OpenAI's reasoning models know the second name only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatDialect(ProbedWithoutTokens):
    """Chat completions.

    Attributes:
        budget_field: What the server calls the budget.
    """

    budget_field: BudgetField = "max_tokens"

    async def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Return chat messages; a text is what the user says."""
        return as_messages(prompt)

    async def draw(self, state: EndpointState, n: int, *, tokens: int, seed: int, logprobs: bool) -> list[Draw]:
        """Draw n answers; see `Dialect.draw`."""
        body = {
            **self.fields(state, n, seed=seed),
            "messages": messages_of(state),
            self.budget_field: tokens,
            **({"logprobs": True} if logprobs else {}),
        }
        choices = await self.client.post(
            "/chat/completions", body, lambda answer: replies.chats(answer, n, budget=tokens, logprobs=logprobs)
        )
        return [as_draw("", choice, state.params.stop) for choice in choices]
