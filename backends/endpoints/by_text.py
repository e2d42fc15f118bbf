"""Text in, text out, as every completion server does it; a prefix is sent as text and tokenized anew."""

from __future__ import annotations

from dataclasses import dataclass

from backends.base import Prompt
from backends.concurrency import all_of
from backends.endpoints import replies
from backends.endpoints.dialects import INCOMPLETE, Draw, EncodedPrompt, EndpointState, text_of
from backends.endpoints.without_tokens import ProbedWithoutTokens, as_draw
from backends.errors import PromptError

_MOST_OF_A_CHARACTER = 4
"""A token may be a single byte, so a character can take this many."""


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
        """Draw n continuations; see `Dialect.draw`.

        Half a character cannot be sent back to go on from. To draw it again would make characters of several tokens
        rarer than they are, or impossible, so a row that ends within one is asked for anew, with the same seed and
        somewhat more tokens; all such rows at the same time, as they were drawn. What that draws once more is counted
        nowhere. Where the server does not follow seeds, that is another draw; where it tells neither
        log-probabilities nor half characters, only a row without any text is known to end so.
        """
        left = state.max_tokens - state.num_tokens
        # The last token's text tells whether a block may end within a character.
        logprobs = logprobs or (tokens < left and self.capabilities.logprobs)
        choices = await self._ask(state, n, tokens=tokens, seed=seed, row=0, logprobs=logprobs)
        most = min(tokens + _MOST_OF_A_CHARACTER, left)

        async def whole(row: int) -> replies.Choice:
            longer, before, budget = choices[row], None, tokens
            while budget < most and _open(longer, before):
                before, budget = longer.text, budget + 1
                (longer,) = await self._ask(state, 1, tokens=budget, seed=seed, row=row, logprobs=logprobs)
            return longer

        # A task for each of the others would cost more than it is worth.
        rows = [row for row, choice in enumerate(choices) if tokens < most and _open(choice, None)]
        for row, longer in zip(rows, await all_of([whole(row) for row in rows]), strict=True):
            choices[row] = longer
        return [as_draw(state.raw or "", choice, state.params.stop) for choice in choices]

    async def _ask(
        self, state: EndpointState, n: int, *, tokens: int, seed: int, row: int, logprobs: bool
    ) -> list[replies.Choice]:
        """Draw n continuations with one request, the first of which is a certain row of the seed."""
        body = {
            **self.fields(state, n, seed=seed, row=row),
            "prompt": text_of(state) + (state.raw or ""),
            "max_tokens": tokens,
            **({"logprobs": 0} if logprobs else {}),
        }
        return await self.client.post(
            "/completions",
            body,
            lambda answer: replies.completions(answer, n, budget=tokens, logprobs=logprobs, ids=False),
        )


def _open(choice: replies.Choice, before: str | None) -> bool:
    """Whether a choice ends within a character, as far as that can be told.

    Args:
        choice: The choice.
        before: The text of all its tokens but the last, where that is known.
    """
    if choice.stopped or choice.error is not None:
        return False
    if not choice.text or choice.text.endswith(INCOMPLETE):
        return True
    # Of a character's tokens, the last one alone looks no other than the ones before.
    last = str(choice.token_texts[-1]) if choice.token_texts else ""
    return last.endswith(INCOMPLETE) and (before is None or len(choice.text) <= len(before))
