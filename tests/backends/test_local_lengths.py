"""Prompts that are far too long: known by their characters, and nobody waits for them."""

from __future__ import annotations

import asyncio
import threading
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from backends import ContextLengthError, SamplingParams
from backends.local import LocalBackend
from backends.local.lengths import TokenLengths

PLAIN = SamplingParams()
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}


def bytewise(
    *, normalizer: Any = None, splitter: Any = None, added: list[Any] | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that knows all bytes and a few longer tokens."""
    merges = [("a", "b"), ("ab", "ab"), ("Ġ", "Ġ"), ("Ã", "©"), ("Ã©", "Ã©"), ("Ì", "ģ")]
    vocabulary = {token: index for index, token in enumerate([*LETTERS, *map("".join, merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizer
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = byte_level if splitter is None else pre_tokenizers.Sequence([splitter, byte_level])
    return built(tokenizer, added)


def byte_fallback() -> PreTrainedTokenizerFast:
    """A tokenizer as sentencepiece makes them: blanks are written, unknown characters are bytes."""
    merges = [("a", "b"), ("▁", "▁"), ("é", "é")]
    tokens = ["<unk>", *BYTES, "a", "b", "é", "▁", *map("".join, merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return built(tokenizer)


def built(tokenizer: Tokenizer, added: list[Any] | None = None) -> PreTrainedTokenizerFast:
    tokenizer.add_tokens(added or [])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # type: ignore[no-untyped-call]


TOKENIZERS = {
    "bytes": bytewise(),
    "composing": bytewise(normalizer=normalizers.NFC()),
    "added": bytewise(added=[AddedToken("a long token of its own", normalized=False)]),
    "fallback": byte_fallback(),
}
PIECES = [
    "ab" * 8, " " * 16, "é" * 4, unicodedata.normalize("NFD", "ᾂǖé각"), "\N{SNOWMAN}", "日本語", "\U0001f642", "\u0301",
    "a long token of its own", "<|endoftext|>", "<|im_start|>", "Ada has 4 boxes", "\n", "\t", "\0",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=20).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=TEXTS)
def test_no_text_has_fewer_tokens_than_its_length_tells(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    lengths = TokenLengths.of(tokenizer)
    assert lengths is not None
    assert len(tokenizer(text)["input_ids"]) >= lengths.fewest(text)


@given(text=TEXTS)
def test_nor_has_it_with_the_embedded_tokenizer(tiny_parts: Any, text: str) -> None:
    tokenizer = tiny_parts[1]
    lengths = TokenLengths.of(tokenizer)
    assert lengths is not None
    assert len(tokenizer(text)["input_ids"]) >= lengths.fewest(text)


def test_every_token_repeated_fits_where_its_tokens_do(tiny_parts: Any) -> None:
    tokenizer = tiny_parts[1]
    lengths = TokenLengths.of(tokenizer)
    assert lengths is not None
    for token in range(len(tokenizer)):
        assert lengths.fewest(tokenizer.decode([token] * 60)) <= 60


def test_composition_makes_one_character_of_at_most_four() -> None:
    for character in map(chr, range(0x110000)):
        apart = unicodedata.normalize("NFD", character)
        if len(apart) > 4:
            assert unicodedata.normalize("NFC", apart) != character


def without_bound() -> dict[str, PreTrainedTokenizerFast]:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "ab": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return {
        "whole words": built(words),
        "one unknown for many": built(Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False))),
        "blanks around a token": bytewise(added=[AddedToken("<end>", rstrip=True)]),
        "stripping": bytewise(normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])),
        "collapsing": bytewise(normalizer=normalizers.Replace("  ", " ")),
        "blanks left out": bytewise(splitter=pre_tokenizers.WhitespaceSplit()),
        "commas left out": bytewise(splitter=pre_tokenizers.Split(",", "removed")),
        "characters left out": built(Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))),
    }


@pytest.mark.parametrize(("name", "tokenizer"), without_bound().items())
def test_tokenizers_that_lose_text_have_no_bound(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert TokenLengths.of(tokenizer) is None


class Observed:
    """A tokenizer of which long texts can be held up."""

    is_fast = True

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.entered = threading.Event()
        self.free = threading.Event()
        self.texts: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str, **options: Any) -> Any:
        self.texts.append(text)
        if len(text) > 4096:
            self.entered.set()
            self.free.wait(60)
        return self._tokenizer(text, **options)


@pytest.fixture
async def observed(tiny_parts: Any) -> Any:
    model, tokenizer = tiny_parts
    seen = Observed(tokenizer)
    async with LocalBackend(model, seen, name="tiny") as backend:  # type: ignore[arg-type]
        yield backend, seen
    seen.free.set()


@pytest.mark.parametrize("chat", [False, True])
async def test_what_cannot_fit_is_refused_before_it_is_tokenized(observed: Any, chat: bool) -> None:
    backend, seen = observed
    text = "word " * 200_000
    prompt = [{"role": "user", "content": text}] if chat else text
    with pytest.raises(ContextLengthError, match=r"characters, which are at least \d+ tokens, .* allows 1024 together"):
        await asyncio.wait_for(backend.begin(prompt, max_tokens=4, params=PLAIN), 60)
    assert not seen.texts


@pytest.mark.parametrize("chat", [False, True])
async def test_nobody_waits_for_a_long_prompt_of_somebody_else(observed: Any, chat: bool) -> None:
    backend, seen = observed
    prompt = [{"role": "user", "content": "Ada has 4 boxes"}] if chat else "Ada has 4 boxes"
    long = [asyncio.create_task(backend.begin("word " * 1000, max_tokens=4, params=PLAIN)) for _ in range(40)]
    assert await asyncio.to_thread(seen.entered.wait, 30)
    state = await asyncio.wait_for(backend.begin(prompt, max_tokens=4, params=PLAIN), 30)
    assert state.prompt_tokens > 0
    seen.free.set()
    for error in await asyncio.gather(*long, return_exceptions=True):
        assert isinstance(error, ContextLengthError)
