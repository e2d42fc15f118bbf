"""Translates what callers sent into requests to `GuidedReasoning`, and refuses what would be misunderstood."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ets_agent.guided import GuidedRequest, Policy, RequestError
from ets_agent.sampler import item_seeds
from ets_agent.server.errors import ApiError
from ets_agent.server.requests import ChatCompletionRequest, ChatRequestMessage, CompletionRequest, SamplingRequest

_IGNORED = {
    "metadata",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}
"""Fields of OpenAI's that change nothing about an answer."""

_HARMLESS: Mapping[str, Callable[[Any], bool]] = {
    "add_generation_prompt": lambda value: value is True,
    "allowed_token_ids": lambda _: False,
    "audio": lambda _: False,
    "bad_words": lambda value: value == [],
    "best_of": lambda value: value == 1,
    "chat_template": lambda _: False,
    "chat_template_kwargs": lambda value: value == {},
    "continue_final_message": lambda value: value is False,
    "echo": lambda value: value is False,
    "frequency_penalty": lambda value: value == 0,
    "function_call": lambda value: value in ("none", "auto"),
    "functions": lambda value: value == [],
    "guided_choice": lambda _: False,
    "guided_grammar": lambda _: False,
    "guided_json": lambda _: False,
    "guided_regex": lambda _: False,
    "ignore_eos": lambda value: value is False,
    "include_stop_str_in_output": lambda value: value is False,
    "length_penalty": lambda value: value == 1,
    "logit_bias": lambda value: value == {},
    "logprobs": lambda value: value is False,
    "min_p": lambda value: value == 0,
    "min_tokens": lambda value: value == 0,
    "modalities": lambda value: value == ["text"],
    "moderation": lambda _: False,
    "presence_penalty": lambda value: value == 0,
    "prompt_logprobs": lambda _: False,
    "reasoning_effort": lambda _: False,
    "repetition_penalty": lambda value: value == 1,
    "stop_token_ids": lambda value: value == [],
    "structured_outputs": lambda _: False,
    "suffix": lambda value: value == "",
    "tool_choice": lambda value: value in ("none", "auto"),
    "tools": lambda value: value == [],
    "top_k": lambda value: value in (0, -1),
    "top_logprobs": lambda value: value == 0,
    "truncate_prompt_tokens": lambda _: False,
    "use_beam_search": lambda value: value is False,
    "verbosity": lambda _: False,
    "web_search_options": lambda _: False,
}
"""Fields of OpenAI's and vLLM's that would change an answer and are not supported, and the values besides null that say
so little that they may pass."""

_INSTEAD = {
    "guided_json": "; use ets.reward, such as json_schema",
    "reasoning_effort": "; use ets.effort",
    "structured_outputs": "; use ets.reward, such as json_schema",
    "top_k": "; use ets.settings.top_k",
}

_MOST_NAMED = 16
"""Fields that a warning names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a caller wants.

    Attributes:
        requests: One for each answer, in the order of choices; they differ in prompt and seed alone.
        choices: Answers to each prompt.
        stream: Whether blocks are sent as they are chosen.
        include_usage: Whether a stream ends with the usage.
        warnings: What the caller is told of fields that nobody knows.
        body: The request as it came.
    """

    requests: list[GuidedRequest]
    choices: int
    stream: bool
    include_usage: bool
    warnings: list[str]
    body: SamplingRequest

    def param(self, error: RequestError) -> str | None:
        """Return the field of the body that a refusal is about; None where it is about no single one."""
        field = error.field
        if field is None:
            return None
        if field == "reward":
            given = self.body.ets is not None and self.body.ets.reward is not None
            return "response_format" if "response_format" in self.body.model_fields_set and not given else "ets.reward"
        if field == "max_tokens" and getattr(self.body, "max_completion_tokens", None) is not None:
            return "max_completion_tokens"
        if field == "continuation":
            return "prompt"
        name = field.removeprefix("settings.")
        if (name in SamplingRequest.model_fields and getattr(self.body, name) is not None) or name == "messages":
            return name
        return f"ets.{field}"


def chat_asked(body: ChatCompletionRequest, policy: Policy) -> Asked:
    """Return what a request to /v1/chat/completions asks for.

    Raises:
        ApiError: Something is not supported or contradictory.
        RequestError: Something is not possible.
    """
    tokens = (body.max_tokens, body.max_completion_tokens)
    if None not in tokens and tokens[0] != tokens[1]:
        raise ApiError(
            400,
            f"max_tokens is {tokens[0]} and max_completion_tokens {tokens[1]}; give one of the two",
            param="max_completion_tokens",
        )
    messages = [_message(message) for message in body.messages]
    return _asked(body, [{"messages": messages}], reward=_reward_of_format(body, policy))


def completion_asked(body: CompletionRequest) -> Asked:
    """Return what a request to /v1/completions asks for.

    Raises:
        ApiError: Something is not supported or contradictory.
        RequestError: Something is not possible.
    """
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    return _asked(body, [{"continuation": prompt} for prompt in prompts], reward=None)


def _asked(body: SamplingRequest, prompts: list[dict[str, Any]], *, reward: dict[str, Any] | None) -> Asked:
    warnings = _warnings(_unknown(body))
    fields = _fields(body)
    if reward is not None:
        fields["reward"] = reward
    settings = fields.pop("settings")
    count = body.choices
    seeds = _seeds(settings.get("seed"), len(prompts) * count)
    requests = [
        GuidedRequest.build({**prompt, **fields, "settings": settings if seed is None else {**settings, "seed": seed}})
        for prompt, seed in zip([each for each in prompts for _ in range(count)], seeds, strict=True)
    ]
    return Asked(
        requests=requests,
        choices=count,
        stream=bool(body.stream),
        include_usage=body.stream_options is not None and bool(body.stream_options.include_usage),
        warnings=warnings,
        body=body,
    )


def _seeds(seed: int | None, count: int) -> list[int | None]:
    """Return a seed for each answer.

    That of a single one is the caller's own, so that the seed which an answer tells gives it again.
    """
    if seed is None or count == 1:
        return [seed] * count
    return [*item_seeds(seed, count)]


def _fields(body: SamplingRequest) -> dict[str, Any]:
    """Return the fields of a `GuidedRequest` that are not about the prompt, with the settings as plain values."""
    ets = body.ets
    given: dict[str, Any] = {} if ets is None else ets.model_dump(exclude_none=True)
    settings: dict[str, Any] = given.pop("settings", {})
    for name in ("temperature", "top_p", "seed", "stop"):
        value = getattr(body, name)
        if value is None or value == []:
            continue
        if name in settings:
            raise ApiError(
                400, f"{name} is given twice, also in ets.settings; give it once", param=f"ets.settings.{name}"
            )
        # Seeds here are not negative; the one that an answer tells is what was used.
        settings[name] = value % 2**63 if name == "seed" else value
    return {**given, "settings": settings, "max_tokens": body.max_answer_tokens}


def _unknown(body: SamplingRequest) -> list[str]:
    """Return the names of fields that nobody knows, having refused those that are known and not supported."""
    for name, value in body.extra.items():
        if value is None or name not in _HARMLESS or _HARMLESS[name](value):
            continue
        raise ApiError(
            400,
            f"{name} is not supported{_INSTEAD.get(name, '')}",
            param=name,
            code="unsupported_parameter",
        )
    return [name for name in body.extra if name not in _IGNORED and name not in _HARMLESS]


def _warnings(unknown: list[str]) -> list[str]:
    """Say which fields were ignored, in words of a bounded length: they stand in the reply once for each answer."""
    if not unknown:
        return []
    named = ", ".join(f"{name!r:.80}" for name in unknown[:_MOST_NAMED])
    more = f" and {len(unknown) - _MOST_NAMED:,} more" if len(unknown) > _MOST_NAMED else ""
    if len(unknown) == 1:
        return [f"the field {named} is not known here and was ignored"]
    return [f"the fields {named}{more} are not known here and were ignored"]


def _message(message: ChatRequestMessage) -> dict[str, str]:
    content = message.content if isinstance(message.content, str) else "".join(part.text for part in message.content)
    return {"role": "system" if message.role == "developer" else message.role, "content": content}


def _reward_of_format(body: ChatCompletionRequest, policy: Policy) -> dict[str, Any] | None:
    """Return the reward that a ``response_format`` stands for."""
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if body.ets is not None and body.ets.reward is not None:
        raise ApiError(
            400, "response_format and ets.reward both say how answers are judged; give one", param="response_format"
        )
    offer = policy.offers.get("json_schema")
    if offer is None or "schema" not in offer.caller_arguments:
        raise ApiError(
            400,
            f"response_format {wanted.type} is not supported, for the reward json_schema is not on offer here",
            param="response_format",
            code="unsupported_parameter",
        )
    if wanted.type == "json_object":
        return {"name": "json_schema", "schema": {"type": "object"}}
    if wanted.json_schema is None:
        raise ApiError(400, "response_format.json_schema is missing", param="response_format.json_schema")
    return {"name": "json_schema", "schema": wanted.json_schema.schema_}
