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
_TAIL = 16
"""Characters by which the end of a known text is found again."""
_MOST_HIDDEN = 8
"""Different special tokens that are looked for in one response; there is something else when there are more."""


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
        return (await self.text(ids[-_WINDOW:])).endswith(INCOMPLETE)

    async def known(self, state: EndpointState) -> tuple[str, bool]:
        """Return a state's text so far, and whether its last token ends within a character.

        An adopted state has no text of its own, but that of the other model, which goes as far as it is settled.
        """
        if state.raw is not None:
            return state.raw, state.split
        decoded = await self.text(state.token_ids)
        split, whole, stop = decoded.endswith(INCOMPLETE), decoded.rstrip(INCOMPLETE), state.params.stop
        if settled(whole, stop) == state.text:
            return whole, split
        # With special tokens among them: then only the end is new, which may become a stop string.
        tail = state.text[-_TAIL:]
        place = whole.rfind(tail) if tail else -1
        raw = state.text + whole[place + len(tail) :] if place >= 0 else state.text
        return raw if settled(raw, stop) == state.text else state.text, split

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
        while not told.endswith(_later(new)) and len(found) < _MOST_HIDDEN:
            shown = [token for token in ids if token not in found | special]
            low, high = 0, len(shown) - 1
            while low < high:
                middle = (low + high + 1) // 2
                head = (await self._new(shown[:middle])).rstrip(INCOMPLETE)
                low, high = (low, middle - 1) if told.endswith(new[len(head) :].rstrip(INCOMPLETE)) else (middle, high)
            if not shown or not _bracketed(await self.detokenizer.text(shown[low : low + 1])):
                return False
            found.add(shown[low])
            new = await self._new([token for token in ids if token not in found])
        if not told.endswith(_later(new)):
            return False  # It was something else, and nothing is known of any token.
        special |= found
        return True


def _bracketed(text: str) -> bool:
    """Whether a token's text looks like a special one's: ``<|im_end|>``, ``</s>``, ``[SEP]``."""
    return len(text) > 2 and (text[0], text[-1]) in {("<", ">"), ("[", "]")}


def _later(new: str) -> str:
    """Return a new text without the character that was begun before, whose part alone looks otherwise."""
    return new.rstrip(INCOMPLETE)[1:]
