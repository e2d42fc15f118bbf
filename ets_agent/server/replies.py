"""What the server answers, in OpenAI's shapes. What OpenAI does not know stands under ``ets``, and nowhere else."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ets_agent.guided import GuidedAnswer

FinishReason = Literal["stop", "length"]
DONE = "[DONE]"
"""The last event of a stream that ended well."""


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class ErrorBody(_Reply):
    """What went wrong."""

    message: str
    """What is wrong and what is allowed."""
    type: str
    """Whose doing it is: invalid_request_error, rate_limit_error or server_error."""
    param: str | None
    """The parameter that it is about."""
    code: str | None
    """A word for programs."""


class ErrorReply(_Reply):
    """An error."""

    error: ErrorBody


class EtsUsage(_Reply):
    """What an answer cost."""

    candidate_tokens: int
    """Tokens drawn as candidates."""
    rollout_tokens: int
    """Tokens drawn as rollouts, by the proposal where there is one."""
    scoring_tokens: int
    """Tokens of a proposal's rollouts that the reference scored."""
    saved_tokens: int
    """Tokens that rollouts left out would have cost; not part of the total."""
    seconds: float
    """Wall time."""


class EtsReply(_Reply):
    """What guided sampling has to say of an answer."""

    answer: str | None
    """The final answer that the reward reads in the text; null where it reads none."""
    confidence: float | None
    """The share of weight behind the answer, 0 to 1: agreement under this reward, and no probability of being right."""
    reward: float | Literal["-Infinity"] | None
    """The reward of the response; null where there was no verdict."""
    cut_short: bool
    """Whether a deadline or token budget ended the search; this is then the best answer that there was."""
    finish_reason: Literal["stop", "length", "timeout", "budget"]
    """Why it ended; OpenAI's ``finish_reason`` knows the first two only."""
    trace_id: str
    """Names the run, in logs and as name of its trace."""
    seed: int | None
    """The seed of the run; sent with n = 1, it gives this answer again. Null where it had no place before its time was
    over."""
    usage: EtsUsage
    """Tokens and seconds."""
    warnings: list[str]
    """What went wrong on the way without ending the run, and which fields of the request were ignored."""

    @classmethod
    def of(cls, answer: GuidedAnswer, *, warnings: list[str]) -> EtsReply:
        """Return what there is to say of an answer.

        Args:
            answer: The answer.
            warnings: What is to be said of the request.
        """
        reward = answer.reward
        nothing = answer.cut_short and not answer.text and not answer.warnings
        return cls(
            answer=answer.answer,
            confidence=answer.confidence,
            reward="-Infinity" if reward is not None and not math.isfinite(reward) else reward,
            cut_short=answer.cut_short,
            finish_reason=answer.finish_reason,
            trace_id=answer.trace_id,
            seed=answer.seed,
            usage=EtsUsage(**answer.usage.model_dump(include=set(EtsUsage.model_fields))),
            warnings=[
                *answer.warnings,
                *(["no response was complete in time"] if nothing else []),
                *warnings,
            ],
        )


class CompletionTokensDetails(_Reply):
    """What the completion's tokens were."""

    reasoning_tokens: int
    """Those that were drawn to find the text and are not part of it."""


class Usage(_Reply):
    """Tokens of all choices."""

    prompt_tokens: int
    """Tokens of the prompts; 0 where the model does not tell."""
    completion_tokens: int
    """All tokens that were drawn."""
    total_tokens: int
    completion_tokens_details: CompletionTokensDetails


class ChatMessage(_Reply):
    """The model's answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(_Reply):
    """One answer."""

    index: int
    message: ChatMessage
    finish_reason: FinishReason
    logprobs: None = None
    ets: EtsReply


class ChatCompletion(_Reply):
    """The answer to a chat."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(_Reply):
    """What a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None


class ChatChunkChoice(_Reply):
    """What a chunk adds to one answer."""

    index: int
    delta: ChatDelta
    finish_reason: FinishReason | None = None
    logprobs: None = None
    ets: EtsReply | None = None
    """Comes with the finish reason."""


class ChatCompletionChunk(_Reply):
    """One event of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class TextChoice(_Reply):
    """One continuation, or what a chunk adds to it."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: None = None
    ets: EtsReply | None = None
    """Comes with the finish reason."""


class Completion(_Reply):
    """Continuations of texts, or one event of streamed ones."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None


class Model(_Reply):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(_Reply):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[Model]


class Reward(_Reply):
    """A reward that callers may ask for."""

    id: str
    """What to write as ``ets.reward`` or as its ``name``."""
    object: Literal["reward"] = "reward"
    description: str
    default: bool
    """Whether it judges where a request names none."""
    arguments: dict[str, dict[str, Any]]
    """JSON schemas of the arguments that callers may give."""


class RewardList(_Reply):
    """The rewards that callers may ask for."""

    object: Literal["list"] = "list"
    data: list[Reward]


class Health(_Reply):
    """The server is up."""

    status: Literal["ok"] = "ok"
