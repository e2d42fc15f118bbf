"""From token ids to text, and from text to the end of a response."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from backends.base import FinishReason
from backends.text import cut, settled

_BYTES_PER_CHARACTER = 4
"""A byte-level token may be a single byte, so a character can take this many tokens."""


class Decoder:
    """Decodes responses and finds where they end.

    Args:
        tokenizer: The model's tokenizer.
        eos_ids: Every token that ends a sequence.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int]) -> None:
        """Keep both."""
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids

    def text(self, token_ids: Sequence[int], stop: tuple[str, ...], *, finished: bool) -> str:
        """Return the text of a response, cut at its first stop string.

        An unfinished response may end within a character; the incomplete character is left out until the rest is
        there, so that the text only ever grows.
        """
        text = str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))
        return cut(text, stop) if finished else settled(text.rstrip("\N{REPLACEMENT CHARACTER}"), stop)

    def ends(self, before: Sequence[int], drawn: Sequence[int], stop: tuple[str, ...]) -> FinishReason | None:
        """Say whether the last token drawn has ended the response, with a stop string or as end-of-sequence token."""
        if drawn[-1] in self._eos_ids:
            return "stop"
        if stop:
            # Only the last token is new, so a new match lies within the tail.
            width = _BYTES_PER_CHARACTER * (max(map(len, stop)) + 1)
            tail = [*before[-width:], *drawn[-width:]][-width:]
            text = str(self._tokenizer.decode(tail, skip_special_tokens=True))
            if any(string in text for string in stop):
                return "stop"
        return None
