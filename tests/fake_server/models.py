"""What the fake server needs of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Entry(NamedTuple):
    """One token at one position: its log-probability (nats) and how many tokens are at least as probable."""

    token: int
    logprob: float
    rank: int


Step = tuple[Entry, ...]
"""One position: the token that stands there, then the most probable ones that were asked for, without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a request wants its tokens drawn; the fields mean what they mean to vLLM.

    Attributes:
        stop_ids: Tokens that end a row besides the model's own.
        include_stop: Whether the text keeps the stop string that ended it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    include_stop: bool = False

    @property
    def greedy(self) -> bool:
        """Whether vLLM takes the most probable token."""
        return self.temperature < 1e-5


@dataclass(slots=True, kw_only=True)
class Drawn:
    """One row.

    Attributes:
        token_ids: All tokens drawn, the one that ended the row included.
        text: What they say, cut at a stop string.
        finish_reason: ``stop`` or ``length``, or that of a response which ends for another one.
        stop_reason: The stop string, or the token of `Sampling.stop_ids`, that ended the row.
        steps: Log-probabilities, one step per token, where they were asked for.
    """

    token_ids: list[int]
    text: str
    finish_reason: str
    stop_reason: int | str | None = None
    steps: list[Step] | None = None


class Model(Protocol):
    """What the server needs of a model. Token ids given to it are inside its vocabulary."""

    @property
    def name(self) -> str:
        """What requests call it."""
        ...

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and response together."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Token ids are below it."""
        ...

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a response."""
        ...

    @property
    def instant(self) -> bool:
        """Whether drawing never waits, so that nothing can happen meanwhile."""
        ...

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return a text's tokens, with those that mark a prompt if ``special``."""
        ...

    def render(self, messages: Sequence[Mapping[str, str]], *, generation_prompt: bool, open_end: bool) -> list[int]:
        """Return the tokens of a chat; with ``open_end``, the last message is still being written."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Return the text of tokens."""
        ...

    def token_name(self, token: int) -> str:
        """Return the vocabulary's entry for a token."""
        ...

    async def draw(
        self,
        prompt: Sequence[int],
        seeds: Sequence[int],
        *,
        sampling: Sampling,
        max_tokens: int,
        top: int | None,
        processed: bool,
    ) -> list[Drawn]:
        """Draw one row per seed.

        Args:
            prompt: Tokens to continue.
            seeds: Of any size and sign; equal ones give equal rows.
            sampling: How to draw.
            max_tokens: Most tokens of a row, at least 1.
            top: How many of the most probable tokens to tell at each position; None tells no log-probability at all.
            processed: Whether log-probabilities are of the sampled distribution, or of the model's own.
        """
        ...

    async def score(self, prompt: Sequence[int], *, top: int) -> list[Step]:
        """Return the steps of all tokens but the first, under the model's own distribution."""
        ...

    async def aclose(self) -> None:
        """Free what the model holds."""
        ...


def find_stop(text: str, stop: Sequence[str], *, include: bool, begin: int = 0) -> tuple[str, str] | None:
    """Return the stop string that is complete first, and the text up to it; None where there is none.

    Args:
        text: What was drawn.
        stop: Stop strings; of two that end together the first counts.
        include: Whether the text keeps the stop string.
        begin: Characters that are known to contain no complete stop string.
    """
    found: tuple[int, int, str] | None = None
    for string in stop:
        start = text.find(string, max(0, begin + 1 - len(string)))
        if start >= 0 and (found is None or start + len(string) < found[0]):
            found = (start + len(string), start, string)
    if found is None:
        return None
    end, start, string = found
    return string, text[: end if include else start]
