"""What implementations of `backends.Backend` have in common: how they keep the contract, and what they refuse."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import zip_longest
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from backends.base import Completion, Prompt, State
from backends.errors import BackendError, PromptError
from backends.text import has_halves

S = TypeVar("S", bound=State)

_MASK = -1
"""What stands in `State.token_ids` of a masked-diffusion model where nothing is drawn yet."""


class BackendContext:
    """The ``async with`` half of the contract, for implementations to inherit."""

    async def aclose(self) -> None:
        """Free what the backend holds."""

    async def __aenter__(self) -> Self:
        """Return the backend itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the backend."""
        await self.aclose()


def row_seeds(seed: int, n: int, *path: int) -> list[int]:
    """Return 64-bit seeds for n rows: row i's is a pure function of (seed, path, i), whatever n is."""
    return [int(row) for row in np.random.SeedSequence(seed, spawn_key=path).generate_state(n, np.uint64)]


def is_count(value: object, least: int) -> bool:
    """Say whether a value is a whole number of at least so much."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object) -> bool:
    """Say whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def check_prompt(prompt: Prompt) -> None:
    """Refuse prompts that are empty or of the wrong type.

    Raises:
        PromptError: With what was wrong and what is allowed.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise PromptError("the prompt is empty; give a question as text or a non-empty list of chat messages")
        if has_halves(prompt):
            raise _half_a_character()
        return
    if not isinstance(prompt, list | tuple):
        raise PromptError(f"the prompt must be text or a list of chat messages, not {type(prompt).__name__}")
    if not prompt:
        raise PromptError("the list of chat messages is empty")
    for message in prompt:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise PromptError(f"a chat message must be a mapping with 'role' and 'content', not {message!r}")
        if not all(isinstance(message[key], str) for key in ("role", "content")):
            raise PromptError(f"role and content of a chat message must be text, not {message!r}")
    if not any(message["content"].strip() for message in prompt):
        raise PromptError("all chat messages are empty")
    if any(has_halves(message[key]) for message in prompt for key in ("role", "content")):
        raise _half_a_character()


def _half_a_character() -> PromptError:
    return PromptError(
        "the prompt has half of a surrogate pair, which is no character; allowed: text that can be encoded as UTF-8"
    )


def check_budget(max_tokens: int) -> None:
    """Refuse a token budget below one.

    Raises:
        PromptError: With what is allowed.
    """
    if not is_count(max_tokens, 1):
        raise PromptError(f"max_tokens must be a whole number of at least 1, not {max_tokens!r}")


def check_counts(n: int, tokens: int | None = None) -> None:
    """Refuse numbers below one: of rows, and of tokens where a call takes those (`Backend.extend`).

    Raises:
        BackendError: With what is allowed.
    """
    if tokens is not None and not (is_count(n, 1) and is_count(tokens, 1)):
        raise BackendError(f"extend needs at least one state of at least one token, not {n!r} of {tokens!r}")
    if not is_count(n, 1):
        raise BackendError(f"rollout needs at least one completion per state, not {n!r}")


def check_continues(state: State, other: State) -> None:
    """Refuse a state whose tokens do not continue another's; see `Backend.adopt`.

    Args:
        state: What is to be continued.
        other: What is to continue it, maybe another backend's.

    Raises:
        BackendError: It does not.
    """
    before, after = state.token_ids, other.token_ids
    kept = all(old in (_MASK, new) for old, new in zip_longest(before, after, fillvalue=_MASK))
    if not kept or len(after) - after.count(_MASK) != other.num_tokens:
        raise BackendError(f"the tokens {after} do not continue the state with {before}")


def own_state(state: State, kind: type[S], name: str) -> S:
    """Return a state as a backend's own.

    Args:
        state: What the backend was given.
        kind: The class of its states.
        name: What messages call such a backend, as ``a local model``.

    Raises:
        BackendError: It is another backend's.
    """
    if not isinstance(state, kind):
        raise BackendError(f"{name} cannot go on from a {type(state).__name__} of another backend")
    return state


def as_completion(state: State) -> Completion:
    """Return a finished state as the completion that `Backend.rollout` gives for it: nothing is drawn."""
    assert state.finish_reason is not None
    return Completion(text=state.text, logprob=0.0, finish_reason=state.finish_reason, confidence=state.confidence)
