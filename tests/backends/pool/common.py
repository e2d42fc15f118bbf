"""Members for pools, and guided runs over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backends import Backend, SamplingParams
from backends.enumerable import EnumerableBackend
from backends.scripted import ScriptedBackend
from ets_agent import ETS, Result
from tests.backends.faulty import Fault, FaultyBackend
from tests.enumeration import Valued

QUESTION = "Will has 41 tickets. Ada gives Will another 72. How many tickets does Will have now?"
PLAIN = SamplingParams()
LETTERS = "abcd"


def members(count: int = 2, *, seed: int = 1) -> list[FaultyBackend]:
    """Members that share nothing but the model."""
    return [FaultyBackend(EnumerableBackend.random(seed, letters=LETTERS)) for _ in range(count)]


def scripted(count: int = 2) -> list[FaultyBackend]:
    """Members that cannot go on from each other's states."""
    return [FaultyBackend(ScriptedBackend(["one two three four five six"])) for _ in range(count)]


def at(number: int, fault: Fault) -> Callable[[int, str], Fault]:
    """A plan: the call of this number fails, all others work."""
    return lambda call, name: fault if call == number else None


def told(result: Result, *, rounded: bool = False) -> dict[str, Any]:
    """All that a result says, but for the time that it took, and for what depends on rounding in a batch."""
    left_out: Any = {"steps": {"__all__": {"rollouts": {"__all__": {"__all__": {"logprob"}}}}}} if rounded else {}
    return result.model_dump(exclude={"usage": {"seconds"}, **left_out})


def guided(backend: Backend, **settings: Any) -> ETS:
    chosen = {"num_candidates": 4, "num_rollouts": 3, "block_size": 2, "max_tokens": 8, "seed": 5} | settings
    return ETS(backend, Valued(), **chosen)
