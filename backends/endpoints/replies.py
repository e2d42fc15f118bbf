"""Reads what completion servers answer; checked by hand, because one object per token takes longer than the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from backends.errors import CapabilityError
from backends.text import without_halves

NO_LOGPROB = -9999.0
"""What vLLM sends for minus infinity, which JSON does not have."""
_PASSING = frozenset({"abort", "error"})
"""Reasons to end by which a server says that it failed; another try may not."""
_FEW, _ROUGHLY = 3, 0.1
"""Some servers leave so many tokens, or such a share, out of what they tell; a limit of their own is farther off."""
_MOST_TOKENS = 2**53
"""Numbers of tokens are below it, so that they can be reckoned with as floats."""


class MalformedError(ValueError):
    """An answer that came through but cannot be used; raised by whoever reads it, and never leaves the package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One drawn continuation, as a server tells it.

    Attributes:
        text: Its text.
        stopped: Whether it ended by itself, and not because its budget was used up.
        stop: The stop string that ended it, where the server tells; it is not in the text.
        token_ids: Its tokens, with the end-of-sequence token; empty where the server does not tell them.
        num_tokens: How many there are; where only the number of all choices' tokens is known, an even share of them.
        logprobs: Log-probability of each (nats), where asked for.
        token_texts: Text of each token, where log-probabilities of completions were asked for.
        error: Why it is no continuation, such as a content filter; asking again would not help.
    """

    text: str
    stopped: bool
    stop: str | None = None
    token_ids: tuple[int, ...] = ()
    num_tokens: int = 0
    logprobs: tuple[float, ...] | None = None
    token_texts: Sequence[Any] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a server tells of given tokens.

    Attributes:
        logprobs: Plain log-probability of each (nats).
        texts: Text of each, special ones shown; empty where it is not told.
    """

    logprobs: tuple[float, ...]
    texts: tuple[str, ...]


def completions(answer: Any, n: int, *, budget: int, logprobs: bool, ids: bool) -> list[Choice]:
    """Read the answer of ``/completions``.

    Args:
        answer: The JSON.
        n: Choices that were asked for.
        budget: Most tokens of each.
        logprobs: Whether log-probabilities were asked for.
        ids: Whether token ids were.

    Raises:
        MalformedError: Something that was asked for is missing or makes no sense.
        CapabilityError: The server has a limit of its own, below the budget.
    """
    choices = [_completion(choice, logprobs=logprobs, ids=ids) for choice in _choices(answer, n)]
    if not ids:
        return _counted(choices, answer, budget)
    for choice in choices:
        if len(choice.token_ids) > budget:
            raise MalformedError(f"a choice has {len(choice.token_ids)} tokens instead of {budget}")
        if not choice.stopped and len(choice.token_ids) < budget:
            raise _limited(len(choice.token_ids), budget)
    return choices


def chats(answer: Any, n: int, *, budget: int, logprobs: bool, exact: bool = True) -> list[Choice]:
    """Read the answer of ``/chat/completions``; as `completions`.

    Args:
        answer: The JSON.
        n: Choices that were asked for.
        budget: Most tokens of each.
        logprobs: Whether log-probabilities were asked for.
        exact: Whether the number of tokens is told by the server, and not somebody's estimate.
    """
    return _counted([_chat(choice, logprobs=logprobs) for choice in _choices(answer, n)], answer, budget, exact=exact)


def prompt_logprobs(answer: Any, wanted: Sequence[Sequence[int]]) -> list[Told]:
    """Read what is told of the last tokens of prompts, one list of such tokens for each prompt."""
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
    if (said := _error(answer)) is not None:
        raise MalformedError(f"it has no choices but an error: {said}")
    choices = _field(answer, "choices")
    if not isinstance(choices, list) or len(choices) != n:
        count = len(choices) if isinstance(choices, list) else "no list of"
        raise MalformedError(f"it has {count} choices instead of {n}")
    try:
        ordered = sorted(choices, key=lambda choice: choice["index"])
        numbers = [choice["index"] for choice in ordered]
    except (TypeError, KeyError):
        raise MalformedError("a choice has no index") from None
    if numbers != list(range(n)):
        raise MalformedError(f"its choices are numbered {numbers}")
    return ordered


def _error(answer: Any) -> str | None:
    """Return what an answer says that has an error instead of choices; None where it has none."""
    if not isinstance(answer, dict) or answer.get("choices") is not None:
        return None
    error = answer.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return " ".join(message.split()) if isinstance(message, str) else None


def _completion(choice: Any, *, logprobs: bool, ids: bool) -> Choice:
    reason = _text(choice, "finish_reason")
    if (failed := _failed(reason)) is not None:
        return failed
    token_ids = _ids(choice.get("token_ids")) if ids else ()
    if ids and not token_ids:
        raise MalformedError("a choice has no tokens")
    listed: tuple[float, ...] | None = None
    texts: Any = ()
    count = len(token_ids)
    if logprobs:
        part = _field(choice, "logprobs")
        listed = _logprobs(_field(part, "token_logprobs"))
        texts = _field(part, "tokens")
        if not isinstance(texts, list) or len(texts) != len(listed) or (ids and len(listed) != len(token_ids)):
            raise MalformedError("it does not have one log-probability for each token")
        if not listed and reason == "length":
            raise MalformedError("a choice has no tokens although it did not stop")
        count = len(listed)
    stop = choice.get("stop_reason")
    return Choice(
        text=_text(choice, "text"),
        stopped=reason == "stop",
        stop=stop if isinstance(stop, str) and reason == "stop" else None,
        token_ids=token_ids,
        num_tokens=count,
        logprobs=listed,
        token_texts=texts,
    )


def _chat(choice: Any, *, logprobs: bool) -> Choice:
    reason = _text(choice, "finish_reason")
    if (failed := _failed(reason)) is not None:
        return failed
    message = _field(choice, "message")
    content = message.get("content") if isinstance(message, dict) else None
    if content is not None and not isinstance(content, str):
        raise MalformedError(f"a message's content is {type(content).__name__}, not text")
    listed = None
    if logprobs:
        entries = _field(_field(choice, "logprobs"), "content")
        if not isinstance(entries, list):
            raise MalformedError("log-probabilities are missing")
        listed = _logprobs([_field(entry, "logprob") for entry in entries])
    return Choice(
        text=without_halves(content or ""),
        stopped=reason == "stop",
        num_tokens=0 if listed is None else len(listed),
        logprobs=listed,
    )


def _failed(reason: str) -> Choice | None:
    """Return a choice that ended by a reason that makes it no continuation; None where the reason is a good one.

    Raises:
        MalformedError: The server failed.
    """
    if reason in {"stop", "length"}:
        return None
    # A server's text may be anything; a short word shows nothing that must not be seen.
    told = f"the reason {reason!r}" if reason.isidentifier() and len(reason) <= 20 else "a reason that is no word"
    if reason in _PASSING:
        raise MalformedError(f"a choice ended for {told}")
    return Choice(text="", stopped=True, error=f"the server ended it for {told}; allowed: 'stop' and 'length'")


def _counted(choices: list[Choice], answer: Any, budget: int, *, exact: bool = True) -> list[Choice]:
    """Return choices with their numbers of tokens, as far as they can be told.

    A choice that did not stop has its whole budget: what a server hides, such as reasoning, uses it up as well.
    """
    drawn = [choice for choice in choices if choice.error is None]
    total = _drawn_in_all(answer)
    if exact and len(drawn) == len(choices):
        most = _longest_unstopped(drawn, total)
        if most == 0:
            raise MalformedError("a choice has no tokens although it did not stop")
        if most is not None and budget - most > max(_FEW, _ROUGHLY * budget):
            raise _limited(math.floor(most), budget)
    known = sum(choice.num_tokens if choice.stopped else budget for choice in choices)
    # Those that failed were drawn as well.
    unknown = sum(choice.stopped and not choice.num_tokens for choice in choices)
    left = budget if total is None else (total - known) // max(1, unknown)
    share = min(budget, max(1, left))

    def count(choice: Choice) -> int:
        return budget if not choice.stopped else choice.num_tokens or share

    return [choice if choice.error is not None else replace(choice, num_tokens=count(choice)) for choice in choices]


def _longest_unstopped(choices: list[Choice], total: int | None) -> float | None:
    """Return the most tokens that the shortest of the choices can have which did not stop; None where nothing tells.

    Log-probabilities tell each choice's, unless there are tokens without any, as those of reasoning are.
    """
    unstopped = [choice for choice in choices if not choice.stopped]
    if not unstopped:
        return None
    known = sum(choice.num_tokens for choice in choices)
    if all(choice.num_tokens for choice in choices) and (total is None or total - known <= len(choices)):
        return min(choice.num_tokens for choice in unstopped)
    if total is None:
        return None
    others = sum(max(1, choice.num_tokens) for choice in choices if choice.stopped)
    return max(0, total - others) / len(unstopped)


def _drawn_in_all(answer: Any) -> int | None:
    """Return how many tokens were drawn for all choices, where the server tells."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None
    drawn, prompt, whole = (usage.get(name) for name in ("completion_tokens", "prompt_tokens", "total_tokens"))
    if not isinstance(drawn, int):
        return None
    # Some count reasoning in the whole only.
    count = max(drawn, whole - prompt) if isinstance(whole, int) and isinstance(prompt, int) else drawn
    if count >= _MOST_TOKENS:
        raise MalformedError("the number of its tokens makes no sense")
    return count


def _limited(told: int, budget: int) -> CapabilityError:
    """Return the error for an answer that a limit of the server's own has cut: it is no draw of this length."""
    return CapabilityError(
        f"the server ended an answer after {told} tokens, although {budget} were asked for and nothing stopped it: it "
        "has a limit of its own. Lower max_tokens, or raise that limit (with vLLM, max_new_tokens in the model's "
        "generation config or --override-generation-config)"
    )


def _prompt_logprobs(choice: Any, wanted: Sequence[int]) -> Told:
    listed = _field(choice, "prompt_logprobs")
    if not isinstance(listed, list) or len(listed) <= len(wanted):
        raise MalformedError("log-probabilities of the prompt are missing")
    entries = [
        _field(entry, str(token)) for token, entry in zip(wanted, listed[len(listed) - len(wanted) :], strict=True)
    ]
    texts = [entry.get("decoded_token") if isinstance(entry, dict) else None for entry in entries]
    return Told(
        logprobs=_logprobs([_field(entry, "logprob") for entry in entries]),
        texts=tuple(text if isinstance(text, str) else "" for text in texts),
    )


def _field(value: Any, name: str) -> Any:
    if not isinstance(value, dict) or value.get(name) is None:
        raise MalformedError(f"{name!r} is missing")
    return value[name]


def _text(value: Any, name: str) -> str:
    content = _field(value, name)
    if not isinstance(content, str):
        raise MalformedError(f"{name!r} is {type(content).__name__}, not text")
    return without_halves(content)


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise MalformedError("token ids are missing")
    return tuple(value)


def _logprobs(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        raise MalformedError("log-probabilities are missing")
    # JSON has integers that no float can hold.
    if not all(value < math.inf if isinstance(value, float) else value < _MOST_TOKENS for value in values):
        raise MalformedError("a log-probability is no number")
    return tuple(-math.inf if value <= NO_LOGPROB else float(value) for value in values)
