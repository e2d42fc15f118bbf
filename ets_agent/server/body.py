"""Reads a request's body: no more of it than is allowed, and nothing in it that later code could stumble over."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from ets_agent._validation import fields_at, sentence
from ets_agent.server.errors import CLOSE, ApiError, ClientGoneError

M = TypeVar("M", bound=BaseModel)

MAX_DEPTH = 64
"""Objects and arrays within each other; a JSON schema that people wrote has a dozen."""
MAX_VALUES = 32_768
"""Values in all, names of fields included. Each may be wrong in ways of its own, and explaining takes time."""
_DISCARD_SECONDS = 2.0
"""How long the rest of a body that is too large is read and thrown away: clients that are still sending when the
connection ends do not see the answer."""


def body_of(model: type[M], *, max_bytes: int, seconds: float) -> Callable[[Request], Coroutine[Any, Any, M]]:
    """Return what reads a request's body.

    Args:
        model: What it must be.
        max_bytes: Most bytes.
        seconds: Longest time that sending may take.
    """

    async def read(request: Request) -> M:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # Browsers let any page send text, forms or bytes of no kind to any address, and ask before they send JSON.
        if kind != "application/json":
            raise ApiError(415, f"the body is {kind!r:.80}; allowed: application/json")
        raw = await _bytes(request, max_bytes, seconds)
        return _validated(model, raw)

    return read


async def _bytes(request: Request, most: int, seconds: float) -> bytes:
    """Return the body, of which no more than what is allowed is ever kept."""
    told = request.headers.get("content-length", "")
    too_large = told.isdecimal() and int(told) > most
    parts: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(min(seconds, _DISCARD_SECONDS) if too_large else seconds) as limit:
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                part, more = message.get("body", b""), message.get("more_body", False)
                size += len(part)
                if size <= most and not too_large:
                    parts.append(part)
                elif not too_large:
                    too_large = True
                    parts.clear()
                    limit.reschedule(asyncio.get_running_loop().time() + min(seconds, _DISCARD_SECONDS))
    except TimeoutError:
        if not too_large:
            raise ApiError(408, f"the body did not arrive within {seconds:g} seconds", headers=CLOSE) from None
    if too_large:
        text = f"the body is too large; allowed: at most {most} bytes"
        raise ApiError(413, text, code="request_too_large", headers=CLOSE)
    return b"".join(parts)


def _validated(model: type[M], raw: bytes) -> M:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not valid UTF-8") from None
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ApiError(400, "the body is not a JSON object")
    _check(content)
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise _explained(model, error, content) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _too_deep() -> ApiError:
    return ApiError(400, f"the body is nested too deep; allowed: {MAX_DEPTH} levels")


def _check(content: Any) -> None:
    """Refuse what JSON can say and nothing behind can work with, without recursion, which is what it is about."""
    left = [(content, 1)]
    seen = 1
    while left:
        value, depth = left.pop()
        if isinstance(value, dict | list):
            if depth > MAX_DEPTH:
                raise _too_deep()
            seen += 2 * len(value) if isinstance(value, dict) else len(value)
            if seen > MAX_VALUES:
                raise ApiError(400, f"the body has too many values in it; allowed: {MAX_VALUES}")
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            left += [(each, depth + 1) for each in inner]
        elif isinstance(value, str):
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                raise ApiError(400, "the body has half of a surrogate pair in it, which is no character") from None
        elif isinstance(value, float) and not math.isfinite(value):
            raise ApiError(400, "the body has a number in it that is too large")


def _explained(model: type[BaseModel], error: ValidationError, content: Any) -> ApiError:
    """Say in one sentence what is wrong with the field that is wrong deepest down, and first.

    Of a value that may be one thing or another, each has its own complaint; the one that got furthest meant it.
    """
    problems = error.errors(include_url=False, include_context=False)
    paths = [_path(problem["loc"], content) for problem in problems]
    deepest = max(paths, key=len)
    first = paths[0]
    chosen = deepest if deepest[: len(first)] == first else first
    about = [problem for problem, path in zip(problems, paths, strict=True) if path == chosen]
    param = _spelled(chosen)
    if about[0]["type"] == "missing":
        return ApiError(400, f"{param} is missing", param=param, code="missing_required_parameter")
    if about[0]["type"] == "extra_forbidden":
        allowed = ", ".join(fields_at(model, chosen[:-1]))
        return ApiError(
            400, f"there is no field {param!r:.200}; allowed: {allowed}", param=param[:200], code="unknown_parameter"
        )
    messages = list(dict.fromkeys(sentence(problem["msg"]) for problem in about))
    given = about[0]["input"]
    shown = f" is {given!r:.80}" if isinstance(given, str | int | float | None) else ""
    return ApiError(400, f"{param}{shown}: {' or '.join(messages)}", param=param, code="invalid_value")


def _path(location: tuple[int | str, ...], content: Any) -> tuple[int | str, ...]:
    """Return where in the body an error is, without the names of alternatives, which are the validator's own."""
    path: list[int | str] = []
    for place, part in enumerate(location):
        here = isinstance(part, str) and isinstance(content, dict) and part in content
        if here or (isinstance(part, int) and isinstance(content, list) and part < len(content)):
            content = content[part]
            path.append(part)
        elif place == len(location) - 1 and isinstance(content, dict):
            path.append(part)  # What is missing.
    return tuple(path)


def _spelled(path: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
