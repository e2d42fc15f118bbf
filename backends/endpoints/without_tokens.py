"""What the ways to ask have in common that take and give no tokens: nothing is scored, and prefixes are texts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.base import Capabilities, SamplingParams
from backends.endpoints.client import Client
from backends.endpoints.dialects import (
    INCOMPLETE,
    Draw,
    EndpointState,
    failed_draw,
    refuse_temperature,
    refuse_top_k,
    sampling_fields,
)
from backends.endpoints.replies import Choice, Told
from backends.errors import CapabilityError
from backends.service import Service
from backends.text import stop_end
from backends.tokenization import Tokenization


class WithoutTokens:
    """The half of a dialect that is about tokens, where there are none.

    Attributes:
        model: What the model is called in messages.
    """

    __slots__ = ()

    model: str

    @property
    def context(self) -> int | None:
        """Not known: the server counts tokens, not we."""
        return None

    @property
    def tokenization(self) -> Tokenization | None:
        """Not known."""
        return None

    async def score(self, state: EndpointState, rollouts: Sequence[Sequence[int]]) -> list[Told]:
        """Refuse: text would be tokenized anew."""
        raise self._cannot_score()

    async def ends(self, state: EndpointState, token: int) -> bool | None:
        """Refuse, as `score` does."""
        raise self._cannot_score()

    def _cannot_score(self) -> CapabilityError:
        return CapabilityError(f"{self.model} cannot score given tokens: its server takes text only")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedWithoutTokens(WithoutTokens):
    """A server of OpenAI's protocol, of which probing has found out what it can do.

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
    def service(self) -> Service:
        """The server; whose it is, the protocol does not show."""
        return Service.at(self.client.url, provider="openai", model=self.model)

    def check(self, params: SamplingParams) -> None:
        """Refuse what the protocol does not have."""
        refuse_temperature(params)
        refuse_top_k(params)

    def fields(self, state: EndpointState, n: int, *, seed: int, row: int = 0) -> dict[str, Any]:
        """Return what requests of all kinds have in common.

        Args:
            state: What is continued.
            n: How many rows are asked for.
            seed: Of the first row of all.
            row: Which of them is asked for first.
        """
        return {
            "model": self.model,
            **({"n": n} if n > 1 else {}),
            **sampling_fields(state.params),
            **self.neutral,
            **({"seed": seed % self.seeds + row} if self.seeds is not None else {}),
        }

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    def check_open(self) -> None:
        """Refuse to be used after `aclose`."""
        self.client.check_open()


def as_draw(raw: str, choice: Choice, stop: tuple[str, ...]) -> Draw:
    """Return a choice as a continuation of a text.

    A character that is not complete is left out. A stop string that began in the text before is seen
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
