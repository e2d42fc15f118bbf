"""The text of a response that several requests have drawn; a server decodes what it draws, and nothing before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from backends.endpoints import replies
from backends.endpoints.client import Client
from backends.endpoints.dialects import INCOMPLETE, EndpointState
from backends.text import settled

_WINDOW = 16
"""Tokens decoded before those whose text is asked for: more than one character has, so that all of it is among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detokenizer:
    """Asks a server for the text of tokens.

    Draws leave special tokens out of their text, and vLLM's ``/detokenize`` does not; which tokens are special is not
    told. It is found out where the two texts of the same tokens differ.

    Attributes:
        client: The connection.
        model: The model's name on the server.
        special: Tokens that were found to be special.
    """

    client: Client
    model: str
    special: set[int] = field(default_factory=set, compare=False)

    async def text(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, which ends with `INCOMPLETE` where they end within a character."""
        shown = [token for token in ids if token not in self.special]
        if not shown:
            return ""
        return await self.client.post("//detokenize", {"model": self.model, "tokens": shown}, replies.text)

    async def splits(self, ids: Sequence[int]) -> bool:
        """Whether tokens end within a character."""
        return _open(await self.text(ids[-_WINDOW:]))

    async def known(self, state: EndpointState) -> tuple[str, bool]:
        """Return a state's text so far, and whether its last token ends within a character.

        An adopted state has no text of its own, but that of the other model, which goes as far as it is settled.
        """
        if state.raw is not None:
            return state.raw, state.split
        decoded = await self.text(state.token_ids)
        split, whole, stop = _open(decoded), decoded.rstrip(INCOMPLETE), state.params.stop
        known = settled(state.text, stop)
        if settled(whole, stop) == known:
            return whole, split
        # With special tokens among them: then only an end is new that may become a stop string.
        whole = _unmarked(decoded).rstrip(INCOMPLETE)
        for length in range(max(map(len, stop), default=1) - 1, 0, -1):
            if settled(known + whole[-length:], stop) == known:
                return known + whole[-length:], split
        return known, split

    async def at(self, ids: Sequence[int], raw: str) -> Seam:
        """Return the place after some tokens, of which the whole characters are known as ``raw``."""
        window = tuple(ids[-_WINDOW:])
        before = (await self.text(window)).rstrip(INCOMPLETE)
        if not before and len(window) < len(ids):
            window = tuple(ids)
            before = (await self.text(window)).rstrip(INCOMPLETE)
        return Seam(detokenizer=self, window=window, before=before, raw=raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seam:
    """Where a response goes on.

    Attributes:
        detokenizer: Asks the server.
        window: The last tokens before.
        before: Their text, without a character that is not complete.
        raw: The response's text so far.
    """

    detokenizer: Detokenizer
    window: tuple[int, ...]
    before: str
    raw: str

    async def text(self, ids: Sequence[int], told: str) -> str:
        """Return the response's text with more tokens, the first of which may complete a character.

        Args:
            ids: The tokens.
            told: What the server gave as their text when it drew them. Only its end can be trusted, but there it shows
                which tokens are special.
        """
        told = told.rstrip(INCOMPLETE)
        new = await self._new(ids)
        if not told.endswith(_later(new)) and await self._found_special(ids, new, told):
            new = await self._new(ids)
        return self.raw + new

    async def tokens_until(self, ids: Sequence[int], end: int) -> int:
        """Return how many of the tokens it takes to have ``end`` characters of the response."""
        low, high = 1, len(ids)
        while low < high:
            middle = (low + high) // 2
            enough = len(self.raw) + len((await self._new(ids[:middle])).rstrip(INCOMPLETE)) >= end
            low, high = (low, middle) if enough else (middle + 1, high)
        return low

    async def _new(self, ids: Sequence[int]) -> str:
        return (await self.detokenizer.text([*self.window, *ids]))[len(self.before) :]

    async def _found_special(self, ids: Sequence[int], new: str, told: str) -> bool:
        """Find special tokens by which a text differs from what was told, the last one first; say whether they were."""
        special = self.detokenizer.special
        found: set[int] = set()
        while not told.endswith(_later(new)):
            shown = [token for token in ids if token not in found | special]
            low, high = 0, len(shown) - 1
            while low < high:
                middle = (low + high + 1) // 2
                head = (await self._new(shown[:middle])).rstrip(INCOMPLETE)
                low, high = (low, middle - 1) if told.endswith(new[len(head) :].rstrip(INCOMPLETE)) else (middle, high)
            if not shown or not looks_special(await self.detokenizer.text(shown[low : low + 1])):
                return False  # It is something else, and nothing is known of any token.
            found.add(shown[low])
            new = await self._new([token for token in ids if token not in found])
        special |= found
        return True


def looks_special(text: str) -> bool:
    """Whether a token's text looks like a special one's: ``<|im_end|>``, ``</s>``, ``[SEP]``."""
    return len(text) > 2 and (text[0], text[-1]) in {("<", ">"), ("[", "]")}


def _unmarked(text: str) -> str:
    """Return a text without special tokens at its end."""
    begin = max(text.rfind("<"), text.rfind("["))
    return _unmarked(text[:begin]) if begin >= 0 and looks_special(text[begin:]) else text


def _open(text: str) -> bool:
    """Whether a text ends within a character, whatever special tokens come after."""
    return text.endswith(INCOMPLETE) or _unmarked(text).endswith(INCOMPLETE)


def _later(new: str) -> str:
    """Return a new text without the character that was begun before, whose part alone looks otherwise."""
    return new.rstrip(INCOMPLETE)[1:]
