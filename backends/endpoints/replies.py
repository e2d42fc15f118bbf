"""Reads what completion servers answer; checked by hand, because one object per token takes longer than the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from backends.endpoints.client import Malformed

_NO_LOGPROB = -9999.0
"""What vLLM sends for minus infinity, which JSON does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One drawn continuation, as a server tells it.

    Attributes:
        text: Its text.
        stopped: Whether it ended by itself, and not because its budget was used up.
        token_ids: Its tokens, with the end-of-sequence token; empty where the server does not tell them.
        num_tokens: How many there are; where only the number of all choices' tokens is known, an even share of them.
        logprobs: Log-probability of each (nats), where asked for.
        last_token: Text of the last token, where log-probabilities were asked for.
    """

    text: str
    stopped: bool
    token_ids: tuple[int, ...] = ()
    num_tokens: int = 0
    logprobs: tuple[float, ...] | None = None
    last_token: str | None = None


def completions(answer: Any, n: int, *, budget: int, logprobs: bool, ids: bool) -> list[Choice]:
    """Read the answer of ``/completions``.

    Args:
        answer: The JSON.
        n: Choices that were asked for.
        budget: Most tokens of each.
        logprobs: Whether log-probabilities were asked for.
        ids: Whether token ids were.

    Raises:
        Malformed: Something that was asked for is missing or makes no sense.
    """
    return _counted([_completion(choice, logprobs=logprobs, ids=ids) for choice in _choices(answer, n)], answer, budget)


def chats(answer: Any, n: int, *, budget: int, logprobs: bool) -> list[Choice]:
    """Read the answer of ``/chat/completions``; as `completions`."""
    return _counted([_chat(choice, logprobs=logprobs) for choice in _choices(answer, n)], answer, budget)


def prompt_logprobs(answer: Any, wanted: Sequence[Sequence[int]]) -> list[list[float]]:
    """Read the log-probabilities (nats) of the last tokens of prompts, one list of such tokens for each prompt."""
    return [
        _prompt_logprobs(choice, tokens) for choice, tokens in zip(_choices(answer, len(wanted)), wanted, strict=True)
    ]


def tokens(answer: Any) -> tuple[int, ...]:
    """Read the answer of ``/tokenize``."""
    return _ids(_field(answer, "tokens"))


def text(answer: Any) -> str:
    """Read the answer of ``/detokenize``."""
    return _text(answer, "prompt")


def _choices(answer: Any, n: int) -> list[Any]:
    choices = _field(answer, "choices")
    if not isinstance(choices, list) or len(choices) != n:
        count = len(choices) if isinstance(choices, list) else "no list of"
        raise Malformed(f"it has {count} choices instead of {n}")
    try:
        ordered = sorted(choices, key=lambda choice: choice["index"])
        numbers = [choice["index"] for choice in ordered]
    except (TypeError, KeyError):
        raise Malformed("a choice has no index") from None
    if numbers != list(range(n)):
        raise Malformed(f"its choices are numbered {numbers}")
    return ordered


def _completion(choice: Any, *, logprobs: bool, ids: bool) -> Choice:
    token_ids = _ids(choice.get("token_ids")) if ids else ()
    if ids and not token_ids:
        raise Malformed("a choice has no tokens")
    listed: tuple[float, ...] | None = None
    last_token = None
    count = len(token_ids)
    if logprobs:
        part = _field(choice, "logprobs")
        listed = _logprobs(_field(part, "token_logprobs"))
        texts = _field(part, "tokens")
        if not isinstance(texts, list) or len(texts) != len(listed) or (ids and len(listed) != len(token_ids)):
            raise Malformed("it does not have one log-probability for each token")
        last_token = str(texts[-1]) if texts else None
        count = len(listed)
    stopped = _stopped(choice)
    content = _text(choice, "text")
    if not ids and not stopped and not content:
        raise Malformed("a choice is empty although it did not stop")
    return Choice(
        text=content, stopped=stopped, token_ids=token_ids, num_tokens=count, logprobs=listed, last_token=last_token
    )


def _chat(choice: Any, *, logprobs: bool) -> Choice:
    message = _field(choice, "message")
    content = message.get("content") if isinstance(message, dict) else None
    stopped = _stopped(choice)
    if content is not None and not isinstance(content, str):
        raise Malformed(f"a message's content is {type(content).__name__}, not text")
    if not content and not stopped:
        raise Malformed("a choice is empty although it did not stop")
    listed = None
    if logprobs:
        entries = _field(_field(choice, "logprobs"), "content")
        if not isinstance(entries, list):
            raise Malformed("log-probabilities are missing")
        listed = _logprobs([_field(entry, "logprob") for entry in entries])
    return Choice(text=content or "", stopped=stopped, num_tokens=0 if listed is None else len(listed), logprobs=listed)


def _counted(choices: list[Choice], answer: Any, budget: int) -> list[Choice]:
    """Return choices with their numbers of tokens, as far as they can be told; an unknown one is its whole budget."""
    if all(choice.num_tokens for choice in choices):
        return choices
    usage = answer.get("usage")
    total = usage.get("completion_tokens") if isinstance(usage, dict) else None
    stopped = sum(choice.stopped for choice in choices)
    left = total - budget * (len(choices) - stopped) if isinstance(total, int) else budget * stopped
    share = min(budget, max(1, left // stopped)) if stopped else budget
    return [
        replace(choice, num_tokens=share if choice.stopped else budget) if not choice.num_tokens else choice
        for choice in choices
    ]


def _prompt_logprobs(choice: Any, wanted: Sequence[int]) -> list[float]:
    listed = _field(choice, "prompt_logprobs")
    if not isinstance(listed, list) or len(listed) <= len(wanted):
        raise Malformed("log-probabilities of the prompt are missing")
    found: list[Any] = []
    for token, entry in zip(wanted, listed[len(listed) - len(wanted) :], strict=True):
        found.append(_field(_field(entry, str(token)), "logprob"))
    return list(_logprobs(found))


def _field(value: Any, name: str) -> Any:
    if not isinstance(value, dict) or value.get(name) is None:
        raise Malformed(f"{name!r} is missing")
    return value[name]


def _text(value: Any, name: str) -> str:
    content = _field(value, name)
    if not isinstance(content, str):
        raise Malformed(f"{name!r} is {type(content).__name__}, not text")
    return content


def _stopped(choice: Any) -> bool:
    """Whether a choice ended by itself."""
    reason = _text(choice, "finish_reason")
    if reason not in {"stop", "length"}:
        raise Malformed(f"a choice ended by {reason!r}; allowed: 'stop' and 'length'")
    return reason == "stop"


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise Malformed("token ids are missing")
    return tuple(value)


def _logprobs(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        raise Malformed("log-probabilities are missing")
    if any(math.isnan(value) or value == math.inf for value in values):
        raise Malformed("a log-probability is no number")
    return tuple(-math.inf if value <= _NO_LOGPROB else float(value) for value in values)
