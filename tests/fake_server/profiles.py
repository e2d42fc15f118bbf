"""Which kind of server to imitate: what it offers, what it refuses, what it ignores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

_OPENAI_BOTH = {
    "model", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "presence_penalty", "seed", "stop",
    "stream", "stream_options", "temperature", "top_p", "user",
}  # fmt: skip
COMPLETION_FIELDS = frozenset({*_OPENAI_BOTH, "prompt", "best_of", "echo", "suffix"})
"""What api.openai.com takes at /v1/completions."""
CHAT_FIELDS = frozenset({
    *_OPENAI_BOTH, "messages", "max_completion_tokens", "top_logprobs", "response_format", "tools", "tool_choice",
    "parallel_tool_calls", "metadata", "modalities", "prediction", "reasoning_effort", "service_tier", "store",
    "verbosity",
})  # fmt: skip
"""What api.openai.com takes at /v1/chat/completions."""

ProfileName = Literal["vllm", "completions", "completions_no_n", "chat", "chat_no_n"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A kind of server.

    Attributes:
        vllm: It is vLLM: token ids, scores, its own endpoints, its own error bodies.
        completions: It has /v1/completions.
        chat: It has /v1/chat/completions.
        n: Whether n above 1 is served, refused, or answered with one choice as if nothing had been asked for.
        logprobs: Whether log-probabilities are told; otherwise the wish is ignored.
        strict: Whether unknown fields are refused; otherwise they are ignored.
        end_in_logprobs: Whether the token that ends a response has its place among the log-probabilities.
        max_logprobs: Most alternatives at each position; -1 for the whole vocabulary.
    """

    name: ProfileName
    vllm: bool = False
    completions: bool = False
    chat: bool = False
    n: Literal["served", "refused", "ignored"] = "served"
    logprobs: bool = True
    strict: bool = False
    end_in_logprobs: bool = True
    max_logprobs: int = 20


PROFILES: dict[ProfileName, Profile] = {
    profile.name: profile
    for profile in (
        Profile(name="vllm", vllm=True, completions=True, chat=True),
        Profile(name="completions", completions=True, strict=True, max_logprobs=5),
        Profile(name="completions_no_n", completions=True, n="refused", logprobs=False, strict=True),
        Profile(name="chat", chat=True, strict=True, end_in_logprobs=False),
        Profile(name="chat_no_n", chat=True, n="ignored", end_in_logprobs=False),
    )
}


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        message: What was wrong.
        param: Which field.
        kind: The error body's ``type``; by default what the profile says for bad requests.
        code: Its ``code``; vLLM's is the status.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        kind: str | None = None,
        code: str | None = None,
    ) -> None:
        """Keep the parts."""
        super().__init__(message)
        self.status, self.message, self.param, self.kind, self.code = status, message, param, kind, code

    def body(self, profile: Profile) -> dict[str, Any]:
        """Return the error body."""
        code: str | int | None = self.code
        if profile.vllm:
            kind, code = self.kind or "BadRequestError", self.status
        else:
            kind = "server_error" if self.status >= 500 else self.kind or "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": code}}
