"""What token ids mean to a model, so that two models can be told to speak the same tokens or not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

PROBE = "The answer is 3.14 + 1,000 = x²; naïve “日本語” \U0001f642\n\tdef f(x): return x  # end"
"""A text that tokenizers of one vocabulary but different rules (merges, digits, spaces) split differently."""


@dataclass(frozen=True, slots=True)
class Tokenization:
    """The identity of a tokenizer; equal ones give and take the same token ids.

    Attributes:
        size: Number of tokens in the vocabulary.
        vocabulary: SHA-256 of the vocabulary, tokens with their ids.
        probe: `PROBE` as token ids.
        end_ids: Tokens that end a response.
    """

    size: int
    vocabulary: str
    probe: tuple[int, ...]
    end_ids: frozenset[int]

    @classmethod
    def of(cls, vocabulary: Mapping[str, int], encode: Callable[[str], Sequence[int]], end_ids: Iterable[int]) -> Self:
        """Return the identity of a tokenizer.

        Args:
            vocabulary: Ids by token.
            encode: Returns the ids of a text, without special tokens around it.
            end_ids: Tokens that end a response.
        """
        listing = json.dumps(sorted(vocabulary.items()), ensure_ascii=True)
        digest = hashlib.sha256(listing.encode("ascii")).hexdigest()
        return cls(len(vocabulary), digest, tuple(encode(PROBE)), frozenset(end_ids))

    def difference(self, other: Tokenization) -> str | None:
        """Say in what the other one differs, or return None if it does not."""
        if self.size != other.size:
            return f"one vocabulary has {self.size} tokens, the other {other.size}"
        if self.vocabulary != other.vocabulary:
            return "the vocabularies have the same size, but their tokens differ"
        if self.probe != other.probe:
            return "the vocabularies are the same, but a text is split in different ways"
        if self.end_ids != other.end_ids:
            mine, theirs = (", ".join(map(str, sorted(ids))) or "none" for ids in (self.end_ids, other.end_ids))
            return f"the tokens that end a response differ: {mine} and {theirs}"
        return None
