"""The bodies of requests, checked as vLLM 0.32 checks them, or as api.openai.com does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tests.fake_server.models import Sampling
from tests.fake_server.profiles import CHAT_FIELDS, COMPLETION_FIELDS, ApiError, Profile

_MAX_N = 16384
_Id = Annotated[int, Field(ge=0)]
_Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "tool_choice": ("none", "auto"),
    "repetition_penalty": (1, 1.0),
    "length_penalty": (1, 1.0),
    "response_format": ({"type": "text"},),
}
_UNSUPPORTED = (
    "bad_words", "best_of", "frequency_penalty", "ignore_eos", "length_penalty", "logit_bias",
    "logprob_token_ids", "min_tokens", "presence_penalty", "prompt_embeds", "repetition_penalty", "response_format",
    "structured_outputs", "suffix", "tool_choice", "tools", "truncate_prompt_tokens", "use_beam_search",
)  # fmt: skip
"""Fields that would change what is drawn; this server does not do that, and must not look as if it did."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str | None = None


class Generation(_Body):
    """What both kinds of generation share."""

    n: int | None = 1
    seed: _Seed | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    allowed_token_ids: list[_Id] | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None

    def sampling(self) -> Sampling:
        """Return how to draw; refuse values as vLLM does."""
        temperature = 1.0 if self.temperature is None else self.temperature
        top_p = 1.0 if self.top_p is None else self.top_p
        top_k = 0 if self.top_k is None else self.top_k
        min_p = 0.0 if self.min_p is None else self.min_p
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if not math.isfinite(temperature):
            raise _bad("temperature", f"temperature must be a finite number, got {temperature}.", temperature)
        if temperature < 0:
            raise _bad("temperature", f"temperature must be non-negative, got {temperature}.", temperature)
        if temperature > 2:
            raise _bad("temperature", f"temperature must be in [0, 2], got {temperature}.", temperature)
        if not 0 < top_p <= 1:
            raise _bad("top_p", f"top_p must be in (0, 1], got {top_p}.", top_p)
        if top_k < -1:
            raise ApiError(400, f"top_k must be 0 (disable), or at least 1, got {top_k}.")
        if not 0 <= min_p <= 1:
            raise ApiError(400, f"min_p must be in [0, 1], got {min_p}.")
        if not all(stop):
            raise ApiError(400, "stop cannot contain an empty string.")
        return Sampling(
            temperature=temperature,
            top_p=top_p,
            top_k=max(top_k, 0),
            min_p=min_p,
            stop=tuple(stop),
            stop_ids=frozenset(self.stop_token_ids or ()),
            include_stop=self.include_stop_str_in_output,
        )

    def check(self, profile: Profile) -> None:
        """Refuse what neither vLLM nor this server does.

        Raises:
            ApiError: With the status and the message that vLLM has for it.
        """
        count = 1 if self.n is None else self.n
        if count < 1:
            raise ApiError(400, f"n must be at least 1, got {count}.")
        if count > _MAX_N:
            raise ApiError(400, f"n must be at most {_MAX_N}, got {count}.")
        if count > 1 and profile.n == "refused":
            raise ApiError(400, f"n must be 1 for this model, got {count}.", param="n")
        if count > 1 and profile.vllm and self.sampling().greedy:
            raise ApiError(400, f"n must be 1 when using greedy sampling, got {count}.")
        if self.stream_options and not self.stream:
            raise _bad("stream_options", "Stream options can only be defined when `stream=True`.")
        for name in _UNSUPPORTED:
            value = (self.model_extra or {}).get(name)
            if value and value not in _NEUTRAL.get(name, ()):
                raise ApiError(400, f"the fake server does not do {name}", param=name)
        if self.allowed_token_ids is not None and len(self.allowed_token_ids) != 1:
            raise ApiError(400, "the fake server draws from one allowed token or from all", param="allowed_token_ids")
        if self.prompt_logprobs is not None and self.prompt_logprobs < -1:
            message = "`prompt_logprobs` must be a positive value or -1."
            raise _bad("prompt_logprobs", message, self.prompt_logprobs)

    @property
    def count(self) -> int:
        """How many choices per prompt."""
        return self.n or 1


class CompletionRequest(Generation):
    """A request to /v1/completions."""

    prompt: list[_Id] | list[list[_Id]] | str | list[str] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    echo: bool | None = False
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _fill(self) -> Self:
        if self.max_tokens is None:
            self.max_tokens = 16
        return self

    def check(self, profile: Profile) -> None:
        """Refuse what is wrong with it; see `Generation.check`."""
        if self.logprobs is not None and self.logprobs < -1:
            raise _bad("logprobs", "`logprobs` must be a positive value or -1.", self.logprobs)
        if self.prompt is None or self.prompt == "":
            raise _bad("prompt", "Either prompt or prompt_embeds must be provided and non-empty.")
        super().check(profile)
        if profile.vllm:
            return
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise ApiError(400, "'prompt' must be a string or an array of strings", param="prompt")
        if self.echo and self.logprobs is not None:
            message = "Setting 'echo' and 'logprobs' at the same time is not supported for this model."
            raise ApiError(400, message, param="echo")


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str


class ChatRequest(Generation):
    """A request to /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = 0
    add_generation_prompt: bool = True
    continue_final_message: bool = False

    def check(self, profile: Profile) -> None:
        """Refuse what is wrong with it; see `Generation.check`."""
        super().check(profile)
        if self.top_logprobs and not self.logprobs:
            message = "when using `top_logprobs`, `logprobs` must be set to true."
            raise _bad("top_logprobs", message)
        if self.top_logprobs is not None and self.top_logprobs < -1:
            raise _bad("top_logprobs", "`top_logprobs` must be a positive value or -1.", self.top_logprobs)
        check_messages(self.messages, self.continue_final_message, self.add_generation_prompt)


class TokenizeRequest(_Body):
    """A request to /tokenize, of text or of a chat."""

    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool | None = False

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.prompt is None and self.messages is None:
            raise ValueError("either prompt or messages must be given")
        return self


class DetokenizeRequest(_Body):
    """A request to /detokenize."""

    tokens: list[_Id]


def parse(kind: type[_Body], body: Any, profile: Profile) -> Any:
    """Return the request in a body.

    Raises:
        ApiError: It is none: a field is missing, has the wrong type, or is unknown to a strict server.
    """
    if profile.strict and isinstance(body, Mapping):
        known = CHAT_FIELDS if kind is ChatRequest else COMPLETION_FIELDS
        if unknown := sorted(body.keys() - known):
            message = f"Unrecognized request argument supplied: {unknown[0]}"
            raise ApiError(400, message if len(unknown) == 1 else f"{message.replace('argument', 'arguments')}, …")
    try:
        request = kind.model_validate(body)
    except ValidationError as error:
        raise invalid(error) from None
    return request


def invalid(error: ValidationError) -> ApiError:
    """Return vLLM's answer to a body that does not validate."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    places = [".".join(["body", *(str(part) for part in p["loc"] if "[" not in str(part))]) for p in problems]
    lines = [
        f"  {{'type': {p['type']!r}, 'loc': {place!r}, 'msg': {p['msg']!r}}}"
        for p, place in zip(problems, places, strict=True)
    ]
    head = f"{len(problems)} validation error{'s' if len(problems) > 1 else ''}:"
    return ApiError(400, "\n".join([head, *lines[:10]]), param=places[0], kind="Bad Request")


def check_messages(messages: list[Message], continue_final: bool, generation_prompt: bool) -> None:
    """Refuse chats that vLLM refuses."""
    if not messages:
        raise ApiError(400, "Cannot apply chat template to an empty conversation. Provide at least one message.")
    if continue_final and generation_prompt:
        message = "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
        raise ApiError(400, message)


def _bad(param: str, message: str, value: Any = None) -> ApiError:
    """Return vLLM's validation error, whose message repeats the field and the value."""
    tail = f"(parameter={param})" if value is None else f"(parameter={param}, value={value})"
    return ApiError(400, f"{message} {tail}", param=param)
