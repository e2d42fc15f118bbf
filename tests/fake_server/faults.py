"""What goes wrong on purpose: which request gets which fault, decided by index, by chance or by what it asks."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Kind = Literal[
    "rate_limit",
    "server_error",
    "unavailable",
    "reset",
    "hang",
    "malformed_json",
    "fewer_choices",
    "more_choices",
    "no_logprobs",
    "empty_text",
    "truncated",
    "slow",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Everything that can go wrong."""

_STATUS: dict[Kind, tuple[int, str]] = {
    "rate_limit": (429, "Rate limit reached. Please try again later."),
    "server_error": (500, "The server had an error while processing your request."),
    "unavailable": (503, "The engine is currently overloaded, please try again later."),
}
GENERATION = ("/v1/completions", "/v1/chat/completions")
"""Paths of requests that want something drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: ``rate_limit`` (429), ``server_error`` (500) and ``unavailable`` (503) answer with an error at once;
            ``reset`` resets the connection in the middle of the body; ``truncated`` closes it there, in good order;
            ``hang`` never answers; ``slow`` answers late, or when it may; ``malformed_json`` sends half of the JSON as
            if it were all; ``fewer_choices`` leaves the last choice out, ``more_choices`` tells it twice;
            ``no_logprobs`` has none; ``empty_text`` has choices without text and tokens.
        retry_after: Seconds for the Retry-After header of an error; None sends no such header.
        as_date: Whether that header is an HTTP date, which counts whole seconds.
        delay: Seconds before a ``slow`` answer.
        until: What a ``slow`` answer waits for instead, where there is something; a test sets it.
        sent: Share of the body that is sent before a reset or a truncation.
    """

    kind: Kind
    retry_after: float | None = None
    as_date: bool = False
    delay: float = 0.2
    until: threading.Event | None = None
    sent: float = 0.5

    def __post_init__(self) -> None:
        """Refuse kinds that do not exist."""
        if self.kind not in KINDS:
            raise ValueError(f"no fault is called {self.kind!r}; allowed: {', '.join(KINDS)}")
        if not 0 <= self.sent < 1:
            raise ValueError(f"sent is {self.sent}; allowed: from 0 to below 1")

    @property
    def error(self) -> tuple[int, str] | None:
        """Status and message, for faults that are an error answer."""
        return _STATUS.get(self.kind)

    async def wait(self) -> None:
        """Wait as long as a ``slow`` answer does."""
        if self.until is None:
            await asyncio.sleep(self.delay)
            return
        while not self.until.is_set():  # Whoever sets it knows no event loop.
            await asyncio.sleep(0.001)

    def alter(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return the answer of a generation with this fault in it."""
        choices = answer["choices"]
        if self.kind == "fewer_choices":
            return {**answer, "choices": choices[:-1]}
        if self.kind == "more_choices":
            return {**answer, "choices": [*choices, {**choices[-1], "index": len(choices)}]}
        if self.kind == "no_logprobs":
            return {**_without_logprobs(answer), "choices": [_without_logprobs(choice) for choice in choices]}
        if self.kind == "empty_text":
            return {**answer, "choices": [_without_text(choice) for choice in choices]}
        return answer


def _without_logprobs(part: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if name in ("logprobs", "prompt_logprobs") else value for name, value in part.items()}


def _without_text(choice: Mapping[str, Any]) -> dict[str, Any]:
    empty: dict[str, Any] = dict(choice)
    if "message" in choice:
        empty["message"] = {**choice["message"], "content": ""}
    else:
        empty["text"] = ""
    if choice.get("token_ids"):
        empty["token_ids"] = []
    if choice["logprobs"] is not None:
        empty["logprobs"] = {name: [] for name in choice["logprobs"]}
    return empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a plan knows of a request.

    Attributes:
        index: Its place among all requests of the server, from 0.
        body: Its JSON.
    """

    index: int
    path: str
    body: Any

    @property
    def generation(self) -> bool:
        """Whether it wants something drawn."""
        return self.path in GENERATION


Decide = Callable[[Asked], Fault | None]


class FaultPlan:
    """Says which fault a request gets, if any. A plan is asked in the event loop, once per request, in order.

    Args:
        decide: The rule.
    """

    def __init__(self, decide: Decide) -> None:
        """Take a rule; the class methods make the usual ones."""
        self.decide = decide

    def __or__(self, other: FaultPlan) -> FaultPlan:
        """Return the plan that asks the other one where this one has nothing."""
        return FaultPlan(lambda asked: self.decide(asked) or other.decide(asked))

    @classmethod
    def at(cls, faults: Mapping[int, Fault | Kind]) -> FaultPlan:
        """Give faults to requests by index, whatever they ask."""
        known = {index: _fault(fault) for index, fault in faults.items()}
        return cls(lambda asked: known.get(asked.index))

    @classmethod
    def first(cls, *faults: Fault | Kind) -> FaultPlan:
        """Give faults to the next generations, one each, in this order."""
        waiting = [_fault(fault) for fault in faults]
        return cls(lambda asked: waiting.pop(0) if waiting and asked.generation else None)

    @classmethod
    def when(cls, predicate: Callable[[Asked], bool], fault: Fault | Kind) -> FaultPlan:
        """Give a fault to all requests of which something is true."""
        known = _fault(fault)
        return cls(lambda asked: known if predicate(asked) else None)

    @classmethod
    def always(cls, fault: Fault | Kind) -> FaultPlan:
        """Give a fault to every generation."""
        return cls.when(lambda asked: asked.generation, fault)

    @classmethod
    def random(
        cls, rate: float, *, seed: int, kinds: Sequence[Kind] = KINDS, retry_after: float = 0.05, delay: float = 0.2
    ) -> FaultPlan:
        """Give generations some fault with a given probability.

        Whether the request with a given index gets one, and which, depends on the seed and the index alone.

        Args:
            rate: From 0 to 1.
            seed: Of the choice.
            kinds: What to choose from, all alike.
            retry_after: Seconds for Retry-After, which every second 429 and 503 has; half of those have it as a date.
            delay: Seconds of slow answers.
        """
        if not 0 <= rate <= 1:
            raise ValueError(f"the rate is {rate}; allowed: from 0 to 1")
        if not kinds:
            raise ValueError("there is no kind of fault to choose from")
        pool = tuple(kinds)

        def decide(asked: Asked) -> Fault | None:
            rng = random.Random(f"{seed}/{asked.index}")
            if not asked.generation or rng.random() >= rate:
                return None
            return Fault(
                kind=rng.choice(pool),
                retry_after=retry_after if rng.random() < 0.5 else None,
                as_date=rng.random() < 0.5,
                delay=delay,
                sent=rng.random(),
            )

        return cls(decide)


def _fault(fault: Fault | Kind) -> Fault:
    return fault if isinstance(fault, Fault) else Fault(kind=fault)
