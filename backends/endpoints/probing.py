"""Finds out, once, what a server can do: each feature is tried, because version numbers do not tell."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Literal

from backends.base import Capabilities
from backends.endpoints import features, replies
from backends.endpoints.addresses import shown
from backends.endpoints.by_chat import BudgetField, ChatDialect
from backends.endpoints.by_text import TextDialect
from backends.endpoints.by_tokens import TokenDialect
from backends.endpoints.client import Client
from backends.endpoints.dialects import NEUTRAL, Dialect
from backends.endpoints.features import Form, Mode, Server
from backends.endpoints.replies import Choice, MalformedError
from backends.errors import BackendError, restated
from backends.tokenization import PROBE, Tokenization

Api = Literal["auto", "tokens", "completions", "chat"]
"""How to ask a server: by token ids, by text, by chat messages, or by the first of these that it understands."""

_log = logging.getLogger(__name__)

_TEXT = "Ada has 3 apples and buys 4 more. How many apples does Ada have? Ada has"
_OPEN_TEXT = "Once upon a time there was a"
_OPEN_QUESTION = "Write a sentence that nobody has written before."
_TOKENS = 8
_UNLIKE = 0.5
"""Nats between two log-probabilities of one token that no rounding and no quantized cache makes."""
_MOST_NAMES = 10
_DRAWING = frozenset({"/completions", "/chat/completions"})
"""Paths that a server needs; of other ones it may do without."""


async def find_dialect(client: Client, model: str, *, api: Api = "auto", first_within: float | None = None) -> Dialect:
    """Return the most capable way to ask a server for a model.

    What fails, and is not needed, is warned of and done without.

    Args:
        client: The connection.
        model: The model's name on the server.
        api: The way to ask, where it is not to be found out.
        first_within: Seconds that the server has for any answer to the first request.

    Raises:
        BackendError: The server does not understand what is asked for, or has no such model.
        EndpointError: It cannot be reached, or refuses the key.
    """
    server = Server(client, model)
    ways: dict[Api, Callable[[int | None], Awaitable[Dialect | None]]] = {
        "tokens": lambda context: _by_tokens(server, context),
        "completions": lambda _: _by_text(server),
        "chat": lambda _: _by_chat(server),
    }
    if api not in ("auto", *ways):
        raise BackendError(f"api is {api!r}; allowed: auto, {', '.join(ways)}")
    models = await server.listed("/models", _lengths, within=first_within) or {}
    for name, way in ways.items():
        if api in ("auto", name) and (dialect := await way(models.get(model))) is not None:
            _log.info("%s at %s is asked by %s: %s", shown(model), client.url, name, dialect.capabilities)
            for lack in [*server.lacks, *(f"going on without what failed: {error}" for _, error in server.troubles)]:
                _log.warning("%s at %s: %s", shown(model), client.url, lack)
            return dialect
    for path, error in server.troubles:
        if path in _DRAWING:
            advice = "" if api != "auto" else "; api='completions' or api='chat' asks in one way only"
            raise restated(error, f"{error}{advice}")
    kinds = "neither completions nor chat completions" if api == "auto" else f"no requests by {api}"
    said = [f"{path}: {reason}" for path, reason in server.refusals if path in _DRAWING]
    raise BackendError(
        f"the server at {client.url} answers {kinds} for the model {shown(model)!r}; "
        + "; ".join([*_hints(client.url, model, models), *said, *(str(error) for _, error in server.troubles)])
    )


def _hints(url: str, model: str, models: Collection[str]) -> list[str]:
    """Return what may be wrong where a server draws nothing: the model's name, or the address."""
    if model in models:
        return []
    if models:
        return [f"it has {', '.join(sorted(models)[:_MOST_NAMES])}"]
    return ["is its name right?"] + ([] if url.endswith("/v1") else ["most servers have their API under /v1"])


def _lengths(answer: Any) -> dict[str, int | None]:
    """Read the server's models by name with their context lengths, where it tells them."""
    try:
        lengths = {str(entry["id"]): entry.get("max_model_len") for entry in answer["data"]}
    except (TypeError, KeyError, AttributeError):
        return {}
    return {name: length if isinstance(length, int) else None for name, length in lengths.items()}


async def _by_tokens(server: Server, context: int | None) -> Dialect | None:
    """Return the dialect of token ids, or None where the server does not speak it."""
    ids = await server.asked("//tokenize", {"prompt": _TEXT}, replies.tokens)
    if not ids:
        return None
    body = {
        "prompt": list(ids),
        "n": features.ROWS,
        "max_tokens": _TOKENS,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "seed": features.LARGE_SEEDS - 1,
        "return_token_ids": True,
        **NEUTRAL,
    }

    def read(*, logprobs: bool) -> Callable[[Any], Sequence[Choice]]:
        return lambda answer: features.sound(
            replies.completions(answer, features.ROWS, budget=_TOKENS, logprobs=logprobs, ids=True)
        )

    drawn = await server.asked("/completions", body | {"logprobs": 0}, read(logprobs=True))
    if drawn is None and not await server.understands("/completions", body, read(logprobs=False)):
        server.lacks.append("it tokenizes as vLLM does, but does not draw from tokens, so it is asked by text")
        return None
    warm = body | {"temperature": features.WARM}
    seeded = await features.seed_decides(lambda: server.asked("/completions", warm, read(logprobs=False)))
    mode, score = (None, False) if drawn is None else await _measures(server, body, drawn[0])
    probe = await server.asked("//tokenize", {"prompt": PROBE, "add_special_tokens": False}, replies.tokens)
    chat = await server.understands("//tokenize", {"messages": [{"role": "user", "content": _TEXT}]}, replies.tokens)
    if mode is None:
        server.lacks.append("it gives no log-probabilities, or others than its scores, so there is no ETS-IS")
    elif not score:
        server.lacks.append("its scores of given tokens are not those of draws, so it cannot be ETS-IS's reference")
    return TokenDialect(
        client=server.client,
        model=server.model,
        capabilities=Capabilities(
            logprobs=mode is not None,
            score=score,
            tempered_logprobs=mode == "processed",
            tempered_score=False,
            seed=seeded,
            chat=chat,
            confidence=mode is not None,
        ),
        tokenization=None if probe is None else Tokenization(probe=probe),
        context=context,
        raw_logprobs=mode == "raw",
    )


async def _measures(server: Server, body: dict[str, Any], drawn: Choice) -> tuple[Mode | None, bool]:
    """Return what the log-probabilities of draws are, None where they are none, and whether scores are the same.

    Args:
        server: The server.
        body: A request to draw from tokens.
        drawn: What it drew, with log-probabilities.
    """
    two = body | {"n": 1, "max_tokens": 1, "logprobs": 2}
    plain = await server.asked("/completions", two, _completion_top)
    if plain is None:
        return None, False
    mode = features.mode_of(
        plain, await server.asked("/completions", two | {"temperature": features.WARM}, _completion_top)
    )
    scored = await server.asked(
        "/completions",
        {"prompt": [[*body["prompt"], *drawn.token_ids]], "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0},
        lambda answer: replies.prompt_logprobs(answer, [drawn.token_ids]),
    )
    if mode is None or scored is None:
        return mode, False
    # What is given as log-probabilities may be logits, or of a quantized cache: then nothing can be weighed by it.
    distance = max(abs(one - other) for one, other in zip(scored[0].logprobs, drawn.logprobs or (), strict=True))
    return (mode if distance < _UNLIKE else None), distance < features.TOLERANCE


async def _by_text(server: Server) -> Dialect | None:
    """Return the dialect of text completions, or None where the server does not speak it."""
    form = Form(
        path="/completions",
        body={"prompt": _TEXT, "max_tokens": 2 * _TOKENS, "temperature": 1.0, "top_p": 1.0},
        budget_field="max_tokens",
        logprobs={"logprobs": 0},
        alternatives={"logprobs": 2},
        read=lambda answer, n, budget, logprobs: replies.completions(
            answer, n, budget=budget, logprobs=logprobs, ids=False
        ),
        top=_completion_top,
    )
    if not await form.drawn(server):
        return None
    opened = form.but(prompt=_OPEN_TEXT)
    return TextDialect(**await _drawing_only(server, form, opened, chat=False, continues=True))


async def _by_chat(server: Server) -> Dialect | None:
    """Return the dialect of chat messages, or None where the server does not speak it."""
    names: tuple[BudgetField, ...] = ("max_tokens", "max_completion_tokens")
    for name in names:
        form = Form(
            path="/chat/completions",
            body={
                "messages": [{"role": "user", "content": _TEXT}],
                name: 2 * _TOKENS,
                "temperature": 1.0,
                "top_p": 1.0,
            },
            budget_field=name,
            logprobs={"logprobs": True},
            alternatives={"logprobs": True, "top_logprobs": 2},
            read=lambda answer, n, budget, logprobs: replies.chats(answer, n, budget=budget, logprobs=logprobs),
            top=_chat_top,
        )
        if await form.drawn(server):
            opened = form.but(messages=[{"role": "user", "content": _OPEN_QUESTION}])
            found = await _drawing_only(server, form, opened, chat=True, continues=False)
            return ChatDialect(**found, budget_field=name)
    return None


async def _drawing_only(server: Server, form: Form, opened: Form, *, chat: bool, continues: bool) -> dict[str, Any]:
    """Return what a server can do that neither takes nor gives tokens, as arguments of its dialect.

    Args:
        server: The server.
        form: How it is asked.
        opened: The same with a prompt that can go on in many ways.
        chat: Whether that is by chat.
        continues: Whether it goes on with a text.
    """
    neutral = await features.accepted_neutral(server, form)
    form = form.but(**neutral)
    rows = await features.most_rows(server, form)
    seeds = await features.seeds_taken(server, opened.but(**neutral), rows)
    mode = await features.logprobs_mode(server, form)
    return {
        "client": server.client,
        "model": server.model,
        "capabilities": Capabilities(
            continue_prefix=continues,
            logprobs=mode is not None,
            score=False,
            tempered_logprobs=mode == "processed",
            tempered_score=False,
            full_support=False,  # A server may truncate by itself, and nothing shows it.
            seed=seeds.decide,
            chat=chat,
            confidence=mode is not None,
        ),
        "raw_logprobs": mode == "raw",
        "most_rows": rows if seeds.apart else 1,
        "seeds": seeds.limit,
        "neutral": neutral,
    }


def _completion_top(answer: Any) -> dict[str, float]:
    return _tops(lambda: answer["choices"][0]["logprobs"]["top_logprobs"][0].items())


def _chat_top(answer: Any) -> dict[str, float]:
    return _tops(
        lambda: (
            (entry["token"], entry["logprob"])
            for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        )
    )


def _tops(read: Callable[[], Any]) -> dict[str, float]:
    """Return log-probabilities by token; there is at least one."""
    try:
        found = {str(token): float(logprob) for token, logprob in read()}
    except (TypeError, KeyError, IndexError, AttributeError, ValueError, OverflowError):
        found = {}
    if not found:
        raise MalformedError("it has no top log-probabilities")
    return found
