"""Finds out, once, what a server can do: each feature is tried, because version numbers do not tell."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from backends.base import Capabilities
from backends.endpoints import replies
from backends.endpoints.by_chat import BudgetField, ChatDialect
from backends.endpoints.by_text import TextDialect
from backends.endpoints.by_tokens import UNTRUNCATED, TokenDialect
from backends.endpoints.client import Client, Malformed
from backends.endpoints.dialects import Dialect
from backends.errors import BackendError, EndpointError
from backends.tokenization import PROBE, Tokenization

Api = Literal["auto", "tokens", "completions", "chat"]
"""How to ask a server: by token ids, by text, by chat messages, or by the first of these that it understands."""

_log = logging.getLogger(__name__)

_UNKNOWN = frozenset({400, 404, 405, 415, 422, 501})
"""Statuses by which servers say that they do not know something."""

_TEXT = "Ada has 3 apples and buys 4 more. How many apples does Ada have? Ada has"
_ROWS = 2
_TOKENS = 8
_WARM = 2.0
"""A temperature at which log-probabilities of what is sampled differ from plain ones for certain."""
_MOST_ROWS = 128
"""OpenAI's limit of ``n``."""
_TOLERANCE = 0.01
_MOST_NAMES = 10


@dataclass(frozen=True, slots=True)
class _Server:
    """A server being tried."""

    client: Client
    model: str

    async def understands(self, path: str, body: Mapping[str, Any], read: Callable[[Any], Any]) -> bool:
        """Whether the server answers a request in a usable way.

        Raises:
            EndpointError: It failed in another way than by not understanding.
        """
        return await self.asked(path, body, read) is not None

    async def asked(self, path: str, body: Mapping[str, Any], read: Callable[[Any], Any]) -> Any:
        """Return what `read` makes of the answer; None where the server does not understand the request."""

        def lenient(answer: Any) -> Any:
            try:
                return read(answer)
            except Malformed as error:  # It answers, but not what was asked for: it cannot do that.
                _log.debug("%s of %s: %s", path, self.model, error)
                return None

        try:
            return await self.client.post(path, {"model": self.model, **body}, lenient)
        except EndpointError as error:
            if error.status in _UNKNOWN:
                _log.debug("%s of %s: %s", path, self.model, error)
                return None
            raise


async def find_dialect(client: Client, model: str, *, api: Api = "auto") -> Dialect:
    """Return the most capable way to ask a server for a model.

    Args:
        client: The connection.
        model: The model's name on the server.
        api: The way to ask, where it is not to be found out.

    Raises:
        BackendError: The server does not understand what is asked for, or has no such model.
        EndpointError: It cannot be reached, or refuses the key.
    """
    server = _Server(client, model)
    models = await _models(client)
    context = models.get(model)
    ways: dict[Api, Callable[[], Any]] = {
        "tokens": lambda: _by_tokens(server, context),
        "completions": lambda: _by_text(server),
        "chat": lambda: _by_chat(server),
    }
    if api != "auto" and api not in ways:
        raise BackendError(f"api is {api!r}; allowed: auto, {', '.join(ways)}")
    for name, way in ways.items():
        if api in ("auto", name):
            dialect: Dialect | None = await way()
            if dialect is not None:
                _log.info("%s at %s is asked by %s: %s", model, client.url, name, dialect.capabilities)
                return dialect
    kinds = "neither completions nor chat completions" if api == "auto" else f"no requests by {api}"
    known = f"it has {', '.join(sorted(models)[:_MOST_NAMES])}" if models else "is its name right?"
    raise BackendError(f"the server at {client.url} answers {kinds} for the model {model!r}; {known}")


async def _models(client: Client) -> dict[str, int | None]:
    """Return the server's models by name with their context lengths, where it tells them."""

    def read(answer: Any) -> dict[str, int | None]:
        try:
            lengths = {str(entry["id"]): entry.get("max_model_len") for entry in answer["data"]}
        except (TypeError, KeyError, AttributeError):
            return {}
        return {name: length if isinstance(length, int) else None for name, length in lengths.items()}

    try:
        return await client.get("/models", read)
    except EndpointError as error:
        if error.status in _UNKNOWN:
            return {}
        raise


async def _by_tokens(server: _Server, context: int | None) -> Dialect | None:
    """Return the dialect of token ids, or None where the server does not speak it."""
    ids = await server.asked("//tokenize", {"prompt": _TEXT}, replies.tokens)
    if not ids:
        return None
    body = {
        "prompt": list(ids),
        "n": _ROWS,
        "max_tokens": _TOKENS,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "seed": 0,
        "return_token_ids": True,
        "include_stop_str_in_output": True,
        **UNTRUNCATED,
    }
    if not await server.understands(
        "/completions",
        body,
        lambda answer: replies.completions(answer, _ROWS, budget=_TOKENS, logprobs=False, ids=True),
    ):
        return None
    drawn = await server.asked(
        "/completions",
        body | {"logprobs": 0},
        lambda answer: replies.completions(answer, _ROWS, budget=_TOKENS, logprobs=True, ids=True),
    )
    mode = await _logprobs_mode(
        server, "/completions", body | {"n": 1, "max_tokens": 1, "logprobs": 2}, _completion_top
    )
    score = False
    if drawn is not None and mode is not None:
        first = drawn[0]
        found = await server.asked(
            "/completions",
            {"prompt": [[*ids, *first.token_ids]], "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0},
            lambda answer: replies.prompt_logprobs(answer, [first.token_ids]),
        )
        # What is given as log-probabilities may be logits, or of a quantised cache: then nothing can be weighed by it.
        score = found is not None and all(
            abs(one - other) < _TOLERANCE for one, other in zip(found[0], first.logprobs, strict=True)
        )
    probe = await server.asked("//tokenize", {"prompt": PROBE, "add_special_tokens": False}, replies.tokens)
    chat = await server.understands("//tokenize", {"messages": [{"role": "user", "content": _TEXT}]}, replies.tokens)
    known = drawn is not None and mode is not None
    return TokenDialect(
        client=server.client,
        model=server.model,
        capabilities=Capabilities(
            logprobs=known,
            score=score,
            tempered_logprobs=mode == "processed",
            tempered_score=False,
            chat=chat,
            confidence=known,
        ),
        tokenization=None if probe is None else Tokenization(probe=probe),
        context=context,
        raw_logprobs=mode == "raw",
    )


async def _by_text(server: _Server) -> Dialect | None:
    """Return the dialect of text completions, or None where the server does not speak it."""
    plain = {"prompt": _TEXT, "max_tokens": _TOKENS, "temperature": 1.0, "top_p": 1.0}

    def read(n: int, *, logprobs: bool) -> Callable[[Any], Any]:
        return lambda answer: replies.completions(answer, n, budget=_TOKENS, logprobs=logprobs, ids=False)

    if not await server.understands("/completions", plain, read(1, logprobs=False)):
        return None
    several = await server.understands("/completions", plain | {"n": _ROWS}, read(_ROWS, logprobs=False))
    logprobs = await server.understands("/completions", plain | {"logprobs": 0}, read(1, logprobs=True))
    mode = await _logprobs_mode(server, "/completions", plain | {"max_tokens": 1, "logprobs": 2}, _completion_top)
    return TextDialect(
        client=server.client,
        model=server.model,
        capabilities=_drawing_only(
            chat=False,
            continues=True,
            mode=mode if logprobs else None,
            seed=await _seeded(server, "/completions", plain, read(1, logprobs=False)),
        ),
        raw_logprobs=mode == "raw",
        most_rows=_MOST_ROWS if several else 1,
    )


async def _by_chat(server: _Server) -> Dialect | None:
    """Return the dialect of chat messages, or None where the server does not speak it."""
    plain: dict[str, Any] = {"messages": [{"role": "user", "content": _TEXT}], "temperature": 1.0, "top_p": 1.0}

    def read(n: int, *, logprobs: bool) -> Callable[[Any], Any]:
        return lambda answer: replies.chats(answer, n, budget=2 * _TOKENS, logprobs=logprobs)

    names: tuple[BudgetField, ...] = ("max_tokens", "max_completion_tokens")
    for name in names:
        if await server.understands("/chat/completions", plain | {name: 2 * _TOKENS}, read(1, logprobs=False)):
            break
    else:
        return None
    plain |= {name: 2 * _TOKENS}
    several = await server.understands("/chat/completions", plain | {"n": _ROWS}, read(_ROWS, logprobs=False))
    logprobs = await server.understands("/chat/completions", plain | {"logprobs": True}, read(1, logprobs=True))
    mode = await _logprobs_mode(
        server, "/chat/completions", plain | {name: 1, "logprobs": True, "top_logprobs": 2}, _chat_top
    )
    return ChatDialect(
        client=server.client,
        model=server.model,
        capabilities=_drawing_only(
            chat=True,
            continues=False,
            mode=mode if logprobs else None,
            seed=await _seeded(server, "/chat/completions", plain, read(1, logprobs=False)),
        ),
        raw_logprobs=mode == "raw",
        most_rows=_MOST_ROWS if several else 1,
        budget_field=name,
    )


def _drawing_only(*, chat: bool, continues: bool, mode: str | None, seed: bool) -> Capabilities:
    """Return what a server can do that neither takes nor gives tokens."""
    return Capabilities(
        continue_prefix=continues,
        logprobs=mode is not None,
        score=False,
        tempered_logprobs=mode == "processed",
        tempered_score=False,
        full_support=False,  # A server may truncate by itself, and nothing shows it.
        seed=seed,
        chat=chat,
        confidence=mode is not None,
    )


async def _seeded(server: _Server, path: str, body: Mapping[str, Any], read: Callable[[Any], Any]) -> bool:
    """Whether the same seed gives the same text twice."""
    seeded = dict(body) | {"seed": 7}
    first = await server.asked(path, seeded, read)
    return first is not None and first == await server.asked(path, seeded, read)


async def _logprobs_mode(
    server: _Server, path: str, body: Mapping[str, Any], top: Callable[[Any], dict[str, float]]
) -> Literal["raw", "processed"] | None:
    """Find out of which distribution a server gives log-probabilities.

    At temperature T the distance of two tokens shrinks to 1/T of what it is at 1, if they are of the distribution that
    is sampled; a server that gives plain ones shows the same distance.

    Returns:
        ``raw`` for the plain distribution, ``processed`` for the sampled one, None where there are none.
    """
    plain = await server.asked(path, body, top)
    warm = await server.asked(path, dict(body) | {"temperature": _WARM}, top)
    if plain is None or warm is None or max(plain.values()) > _TOLERANCE:
        return None
    shared = [token for token in plain if token in warm]
    if len(shared) < 2:
        return "raw"
    best = max(shared, key=lambda token: plain[token])
    other = min(shared, key=lambda token: plain[token])
    distance, warm_distance = plain[best] - plain[other], warm[best] - warm[other]
    return "processed" if abs(warm_distance - distance / _WARM) < abs(warm_distance - distance) else "raw"


def _completion_top(answer: Any) -> dict[str, float]:
    try:
        found = answer["choices"][0]["logprobs"]["top_logprobs"][0]
        return {str(token): float(logprob) for token, logprob in found.items()}
    except (TypeError, KeyError, IndexError, AttributeError, ValueError):
        raise Malformed("it has no top log-probabilities") from None


def _chat_top(answer: Any) -> dict[str, float]:
    try:
        found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return {str(entry["token"]): float(entry["logprob"]) for entry in found}
    except (TypeError, KeyError, IndexError, AttributeError, ValueError):
        raise Malformed("it has no top log-probabilities") from None
