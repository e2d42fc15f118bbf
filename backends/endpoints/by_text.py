"""Text in, text out, as every completion server does it; a prefix is sent as text and tokenized anew."""

from __future__ import annotations

from dataclasses import dataclass

from backends.base import Prompt
from backends.endpoints import replies
from backends.endpoints.dialects import Draw, EncodedPrompt, EndpointState, text_of
from backends.endpoints.without_tokens import ProbedWithoutTokens, as_draw
from backends.errors import PromptError


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDialect(ProbedWithoutTokens):
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
        raw = state.raw or ""
        body = {
            **self.fields(state, n, seed=seed),
            "prompt": text_of(state) + raw,
            "max_tokens": tokens,
            **({"logprobs": 0} if logprobs else {}),
        }
        choices = await self.client.post(
            "/completions",
            body,
            lambda answer: replies.completions(answer, n, budget=tokens, logprobs=logprobs, ids=False),
        )
        return [as_draw(raw, choice, state.params.stop) for choice in choices]
