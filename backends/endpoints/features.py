"""Finds out single features of a server by trying each; what to make of them is `backends.endpoints.probing`'s."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

from backends.endpoints.client import Client, IllegibleError
from backends.endpoints.dialects import NEUTRAL
from backends.endpoints.replies import NO_LOGPROB, Choice, MalformedError
from backends.errors import BackendError, CapabilityError, EndpointError

T = TypeVar("T")

Mode = Literal["raw", "processed", "unknown"]
"""Of which distribution log-probabilities are: the plain one, the sampled one, or one of the two."""

ROWS = 2
"""Rows of a request for several."""
LARGE_SEEDS = 2**53
"""Seeds are below it, so that every JSON reader keeps them."""
WARM = 2.0
"""A temperature at which log-probabilities of what is sampled differ from plain ones, and different seeds' texts."""
TOLERANCE = 0.01

_log = logging.getLogger(__name__)

_TRIES = 3
"""Answers in a row that must be unusable to show that a server cannot do something: one may be bad luck."""
_UNKNOWN = frozenset({400, 404, 405, 415, 422, 501})
"""Statuses by which servers say that they do not know something."""
_USED_UP = "output limit was reached"
"""What OpenAI says, with status 400, where reasoning has used up the whole budget."""
_FORBIDDEN = frozenset({401, 403})
_NOT_NOW = frozenset({503})
"""A status from 500 on that says nothing of the request."""
_ALLOWED_ROWS = (128, 32, 8, 4)
"""Numbers of rows that are tried; the first is OpenAI's limit of ``n``."""
_SEEDS = (LARGE_SEEDS, 2**31 - _ALLOWED_ROWS[0])
"""What seeds are below; some servers take 32 bits with a sign, and may add the row's number."""
_MANY_ROWS = 8
"""So many are not alike by chance, at a high temperature."""
_CLEAR = 0.1
"""A distance of two log-probabilities (nats) that rounding does not make; a half of it can be told from the whole."""
_PENALTIES = {name: NEUTRAL[name] for name in ("presence_penalty", "frequency_penalty")}


@dataclass(slots=True)
class Server:
    """A server being tried.

    Attributes:
        client: The connection.
        model: The model's name there.
        troubles: What failed otherwise than by not being understood, and on which path; perhaps it works without.
        lacks: What it should be able to do, going by what else it can do, and cannot.
        refusals: What it said on which path where it did not understand, each once, or was not understood.
    """

    client: Client
    model: str
    troubles: list[tuple[str, BackendError]] = field(default_factory=list)
    lacks: list[str] = field(default_factory=list)
    refusals: list[tuple[str, str]] = field(default_factory=list)

    async def understands(self, path: str, body: Mapping[str, Any], read: Callable[[Any], Any]) -> bool:
        """Whether the server answers a request in a usable way; errors as for `asked`."""
        return await self.asked(path, body, read) is not None

    async def asked(
        self, path: str, body: Mapping[str, Any], read: Callable[[Any], T], *, used_up: T | None = None
    ) -> T | None:
        """Return what `read` makes of the answer; None where the server cannot do what is asked.

        Args:
            path: Where.
            body: What is asked.
            read: Raises `MalformedError` where the answer cannot be used.
            used_up: What to return where the server refuses an answer because its budget went into reasoning.

        Raises:
            EndpointError: It gave no answer, or one that says nothing of the request.
        """
        for _ in range(_TRIES):
            found = await self._once(path, body, read, used_up)
            if not isinstance(found, MalformedError):
                return found
            said = self.client.clean(f"the answer cannot be used: {found}")
            _log.debug("%s of %s: %s", path, self.model, said)
        self._refused(path, said)
        return None

    async def listed(self, path: str, read: Callable[[Any], T], *, within: float | None = None) -> T | None:
        """Ask for something that is there or not, with an answer within so many seconds; otherwise as `asked`."""
        try:
            return await self.client.get(path, read, within=within)
        except EndpointError as error:
            self._note(path, error)
            return None

    async def _once(
        self, path: str, body: Mapping[str, Any], read: Callable[[Any], T], used_up: T | None
    ) -> T | MalformedError | None:
        def lenient(answer: Any) -> T | MalformedError:
            try:
                return read(answer)
            except MalformedError as error:  # Asked again at once, because it is no failure to wait for.
                return error

        try:
            return await self.client.post(path, {"model": self.model, **body}, lenient)
        except (EndpointError, CapabilityError) as error:
            if used_up is not None and _USED_UP in str(error):
                return used_up
            self._note(path, error)
            return None

    def _refused(self, path: str, said: str) -> None:
        if (path, said) not in self.refusals:
            self.refusals.append((path, said))

    def _note(self, path: str, error: BackendError) -> None:
        """Take note of a failure that shows what a server cannot do; raise any other one."""
        if isinstance(error, EndpointError):
            status = error.status or 0
            if status in _UNKNOWN:
                _log.debug("%s", error)
                self._refused(path, str(error).partition("]: ")[2] or str(error))
                return
            lacks = status in _FORBIDDEN or (status >= 500 and status not in _NOT_NOW)
            if not lacks and not isinstance(error, IllegibleError):
                raise error
        self.troubles.append((path, error))


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a server is asked to draw, where neither it nor we know tokens.

    Attributes:
        path: Where.
        body: Prompt, budget and sampling parameters.
        budget_field: What the server calls the budget.
        logprobs: Fields by which log-probabilities are asked for.
        alternatives: Fields by which those of the two most probable tokens are.
        read: Reads n choices of at most so many tokens, with log-probabilities or without.
        top: Reads the log-probabilities (nats) of the most probable first tokens.
    """

    path: str
    body: Mapping[str, Any]
    budget_field: str
    logprobs: Mapping[str, Any]
    alternatives: Mapping[str, Any]
    read: Callable[[Any, int, int, bool], Sequence[Choice]]
    top: Callable[[Any], Mapping[str, float]]

    @property
    def budget(self) -> int:
        """Most tokens of an answer."""
        return int(self.body[self.budget_field])

    def but(self, **fields: Any) -> Form:
        """Return the form with other fields in its body."""
        return replace(self, body={**self.body, **fields})

    async def drawn(self, server: Server, n: int = 1, *, logprobs: bool = False) -> Sequence[Choice] | None:
        """Draw n choices; None where the server cannot."""
        body = {**self.body, **({"n": n} if n > 1 else {}), **(self.logprobs if logprobs else {})}
        silent = None if logprobs else [Choice(text="", stopped=False, num_tokens=self.budget)] * n
        return await server.asked(
            self.path, body, lambda answer: sound(self.read(answer, n, self.budget, logprobs)), used_up=silent
        )


def sound(choices: Sequence[Choice]) -> Sequence[Choice]:
    """Return choices, each of which is a continuation.

    Raises:
        MalformedError: One is none.
    """
    for choice in choices:
        if choice.error is not None:
            raise MalformedError(choice.error)
    return choices


async def accepted_neutral(server: Server, form: Form) -> Mapping[str, Any]:
    """Return the fields of `NEUTRAL`, and the top-k that keeps all tokens, as far as the server takes them."""
    for fields in ({**NEUTRAL, "top_k": 0}, {**NEUTRAL, "top_k": -1}, _PENALTIES):
        if await form.but(**fields).drawn(server):
            return fields
    return {}


async def most_rows(server: Server, form: Form) -> int:
    """Return how many rows a request may have, as far as that was tried."""
    if not await form.drawn(server, ROWS):
        return 1
    short = form.but(**{form.budget_field: 1})
    for rows in _ALLOWED_ROWS:
        if await short.drawn(server, rows):
            return rows
    return ROWS


class Seeds(NamedTuple):
    """What a server makes of seeds.

    Attributes:
        limit: What they must be below; None where it takes none.
        decide: Whether the same one gives the same text.
        apart: Whether rows of one request differ, and not all have the same seed.
    """

    limit: int | None
    decide: bool
    apart: bool


async def seeds_taken(server: Server, form: Form, rows: int) -> Seeds:
    """Find out what a server makes of seeds; the form's prompt can go on in many ways.

    Where all texts are alike whatever the seed, it cannot be told whether that decides; then it is taken to.
    """
    several = min(rows, _MANY_ROWS)
    for temperature in (WARM, 1.0):
        for limit in _SEEDS:
            seeded = form.but(temperature=temperature, seed=limit - 1)
            first = await seeded.drawn(server, several)
            if first is not None:
                texts = {choice.text for choice in first}
                apart = several == 1 or len(texts) > 1 or texts == {""}
                return Seeds(limit, await seed_decides(partial(seeded.drawn, server, several), first), apart)
    return Seeds(None, decide=False, apart=True)


async def seed_decides(draw: Callable[[], Awaitable[Sequence[Choice] | None]], *known: Sequence[Choice] | None) -> bool:
    """Whether answers to one request look as if its seed decided; what is not known does not say otherwise.

    Any two that agree in most of their rows are enough: one may differ where tokens are equally likely up to rounding.

    Args:
        draw: Sends the request.
        known: Answers that it had already.
    """
    answers = list(known)
    while len(answers) < _TRIES:
        new = await draw()
        if new is None or any(old is None or _agree(old, new) for old in answers):
            return True
        answers.append(new)
    return False


def _agree(one: Sequence[Choice], other: Sequence[Choice]) -> bool:
    same = sum((a.text, a.token_ids) == (b.text, b.token_ids) for a, b in zip(one, other, strict=True))
    return same > len(one) / 2


async def logprobs_mode(server: Server, form: Form) -> Mode | None:
    """Find out of which distribution a server gives log-probabilities; None where it gives none."""
    if not await form.drawn(server, logprobs=True):
        return None
    body = {**form.body, form.budget_field: 1, **form.alternatives}
    plain = await server.asked(form.path, body, form.top)
    if plain is None:
        return None
    return mode_of(plain, await server.asked(form.path, body | {"temperature": WARM}, form.top))


def mode_of(plain: Mapping[str, float], warm: Mapping[str, float] | None) -> Mode | None:
    """Tell of which distribution log-probabilities are.

    At temperature T the distance of two tokens shrinks to 1/T of what it is at 1, if they are of the distribution that
    is sampled; a server that gives plain ones shows the same distance.

    Args:
        plain: Those of the most probable tokens at temperature 1 (nats).
        warm: Those at temperature `WARM`, where there are some.

    Returns:
        None where they are no log-probabilities.
    """
    if max(plain.values()) > TOLERANCE:
        return None
    shared = [token for token, logprob in plain.items() if warm and logprob > NO_LOGPROB < warm.get(token, NO_LOGPROB)]
    if warm is None or len(shared) < 2:
        return "unknown"
    best = max(shared, key=lambda token: plain[token])
    other = min(shared, key=lambda token: plain[token])
    distance, warm_distance = plain[best] - plain[other], warm[best] - warm[other]
    if distance < _CLEAR:
        return "unknown"
    return "processed" if abs(warm_distance - distance / WARM) < abs(warm_distance - distance) else "raw"
