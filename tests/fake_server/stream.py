"""A whole answer as server-sent events: the same text, tokens and log-probabilities, a word at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.fake_server.wire import encode

_WORD = re.compile(r"\s*\S+|\s+")
_DONE = b"data: [DONE]\n\n"


def events(answer: Mapping[str, Any], *, usage: bool) -> list[bytes]:
    """Return the events of an answer that was asked for as a stream; all of them are known at once.

    Args:
        answer: What would have been sent as a whole.
        usage: Whether the last event tells the usage.
    """
    chat = answer["object"] == "chat.completion"
    head = {name: answer[name] for name in ("id", "created", "model")}
    head["object"] = "chat.completion.chunk" if chat else "text_completion"
    chunks = [
        {**head, "choices": [part]} for choice in answer["choices"] for part in (_chat if chat else _text)(choice)
    ]
    if usage:
        chunks.append({**head, "choices": [], "usage": answer["usage"]})
    return [b"data: " + encode(chunk) + b"\n\n" for chunk in chunks] + [_DONE]


def _text(choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    words = _WORD.findall(choice["text"]) or [""]
    for place, word in enumerate(words):
        share = _Share(place, len(words))
        part = {"index": choice["index"], "text": word, "logprobs": None, "finish_reason": None, "stop_reason": None}
        if choice["logprobs"] is not None:
            part["logprobs"] = {name: share.of(values) for name, values in choice["logprobs"].items()}
        yield _finish(part, choice, share)


def _chat(choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    words = _WORD.findall(choice["message"]["content"]) or [""]
    start = {"role": "assistant", "content": ""}
    yield {"index": choice["index"], "delta": start, "logprobs": None, "finish_reason": None}
    for place, word in enumerate(words):
        share = _Share(place, len(words))
        part = {"index": choice["index"], "delta": {"content": word}, "logprobs": None, "finish_reason": None}
        if choice["logprobs"] is not None:
            part["logprobs"] = {"content": share.of(choice["logprobs"]["content"])}
        yield _finish(part, choice, share)


class _Share:
    """The part of a row's tokens that goes with one of its words: as vLLM's text may, it lags behind them."""

    def __init__(self, place: int, count: int) -> None:
        self.place, self.count = place, count

    @property
    def last(self) -> bool:
        return self.place == self.count - 1

    def of(self, values: Sequence[Any]) -> Sequence[Any]:
        return values[len(values) * self.place // self.count : len(values) * (self.place + 1) // self.count]


def _finish(part: dict[str, Any], choice: Mapping[str, Any], share: _Share) -> dict[str, Any]:
    if choice.get("token_ids") is not None:
        part["token_ids"] = share.of(choice["token_ids"])
    if choice.get("prompt_token_ids") is not None and share.place == 0:
        part["prompt_token_ids"] = choice["prompt_token_ids"]
    if share.last:
        part["finish_reason"] = choice["finish_reason"]
        part["stop_reason"] = choice.get("stop_reason")
    return part
