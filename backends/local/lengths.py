"""How many characters a token can stand for: a text far too long is known as such before it is tokenized."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerBase

_COMPOSED = 4
"""Most characters that canonical composition (NFC) makes one of; in ASCII there is nothing to compose."""

_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """A bound on what one token of a tokenizer stands for.

    Attributes:
        longest: Characters of its longest token, after normalization.
        composes: Whether normalization composes characters.
    """

    longest: int
    composes: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TokenLengths | None:
        """Return the bound, or None where there is none: some tokenizers drop blanks or make one token of any word.

        A token's spelling has a letter for each byte, or one for each character, so it is never shorter than the text
        that it stands for.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or not isinstance(backend.model, models.BPE):
            return None
        vocabulary = tokenizer.get_vocab()
        normalizers, splitters = list(_steps(backend.normalizer)), list(_steps(backend.pre_tokenizer))
        letters = _BYTES if backend.model.byte_fallback else frozenset(pre_tokenizers.ByteLevel.alphabet())
        bytewise = backend.model.byte_fallback or any(step["type"] == "ByteLevel" for step in splitters)
        if not (
            bytewise  # There are no unknown characters then, which might share a token or have none.
            and letters <= vocabulary.keys()
            and all(map(_keeps_length, normalizers))
            and all(map(_keeps_text, splitters))
            and not any(token.lstrip or token.rstrip for token in tokenizer.added_tokens_decoder.values())
        ):
            return None
        return cls(max(map(len, vocabulary)), any(step["type"] == "NFC" for step in normalizers))

    def fewest(self, text: str) -> int:
        """Return a number of tokens that the text has at least."""
        together = self.longest * (_COMPOSED if self.composes and not text.isascii() else 1)
        return -(-len(text) // together)


def _steps(component: Any) -> Iterator[dict[str, Any]]:
    """List the steps of a normalizer or pre-tokenizer, as its file has them."""
    pending = [] if component is None else [json.loads(component.__getstate__())]
    while pending:
        step = pending.pop()
        inner = step.get("normalizers", step.get("pretokenizers"))
        if inner is None:
            yield step
        else:
            pending += inner


def _keeps_length(step: dict[str, Any]) -> bool:
    """Say whether a normalizer makes no text shorter, composition apart."""
    if step["type"] == "Replace":
        replaced = step["pattern"].get("String")
        return replaced is not None and len(replaced) <= len(step["content"])
    return step["type"] in {"NFC", "Prepend"}


def _keeps_text(step: dict[str, Any]) -> bool:
    """Say whether a pre-tokenizer leaves nothing out."""
    return step["type"] in {"ByteLevel", "Digits", "Metaspace"} or (
        step["type"] in {"Split", "Punctuation"} and step["behavior"] != "Removed"
    )
