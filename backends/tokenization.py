"""What token ids mean to a model, so that two models can be told to speak the same tokens or not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

PROBE = (
    "The answer is 3.14 + 1,000 = x²; naïve “日本語” \U0001f642\n\tdef f(x): return x  # end\n\n"
    "Consequently, the internationalisation of electroencephalography was unquestionably straightforward. "
    "Größenwahn, œuvre, señorita, Привет мир, مرحبا, नमस्ते, 你好世界, 안녕하세요\r\n"
    'for (int i = 0; i < 1234567890; ++i) { sum += a[i] ** 2; } // HTTP_STATUS_NOT_FOUND\n    {"key": [null, true]}'
)
"""A text that different tokenizers split differently: words of many languages, digits, spaces, code."""


@dataclass(frozen=True, slots=True)
class Tokenization:
    """The identity of a tokenizer; equal ones give and take the same token ids.

    A server may not tell its vocabulary; then the ids of a long text, which hardly agree by chance, have to do.

    Attributes:
        probe: `PROBE` as token ids.
        size: Number of tokens in the vocabulary.
        vocabulary: SHA-256 of the vocabulary, tokens with their ids.
        end_ids: Tokens that end a response.
    """

    probe: tuple[int, ...]
    size: int | None = None
    vocabulary: str | None = None
    end_ids: frozenset[int] | None = None

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
        return cls(tuple(encode(PROBE)), len(vocabulary), digest, frozenset(end_ids))

    def difference(self, other: Tokenization) -> str | None:
        """Say in what the other one differs, as far as both are known, or return None if it does not."""
        if _differ(self.size, other.size):
            return f"one vocabulary has {self.size} tokens, the other {other.size}"
        if _differ(self.vocabulary, other.vocabulary):
            return "the vocabularies have the same size, but their tokens differ"
        if self.probe != other.probe:
            return "a text is split in different ways"
        if self.end_ids is not None and other.end_ids is not None and self.end_ids != other.end_ids:
            mine, theirs = (", ".join(map(str, sorted(ids))) or "none" for ids in (self.end_ids, other.end_ids))
            return f"the tokens that end a response differ: {mine} and {theirs}"
        return None


def _differ(one: object, other: object) -> bool:
    return one is not None and other is not None and one != other
