"""What callers may send, in OpenAI's shapes, with ``ets`` for what is said about guided sampling."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ets_agent._validation import StopString
from ets_agent.guided.policy import MAX_STOPS
from ets_agent.guided.request import Effort, Settings

MAX_ITEMS = 2048
"""Most messages of a chat, parts of a message, and prompts. The first one that is wrong is the last one looked at."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class TextPart(_Part):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: str


def _refuse_calls(value: Any) -> None:
    if value not in (None, [], {}):
        raise ValueError("tools and audio are not supported")


Nothing = Annotated[None, BeforeValidator(_refuse_calls)]


class ChatRequestMessage(_Part):
    """A message of a chat; fields that OpenAI has besides are ignored, but for tool calls, which are refused."""

    role: Literal["system", "developer", "user", "assistant"]
    """Who says it; a developer is a system."""
    content: str | Annotated[list[TextPart], Field(max_length=MAX_ITEMS, fail_fast=True)]
    """What is said."""
    tool_calls: Nothing = None
    function_call: Nothing = None
    audio: Nothing = None


class EtsOptions(_Part):
    """How an answer is found."""

    model_config = ConfigDict(extra="forbid")

    reward: str | dict[str, Any] | None = None
    """How answers are judged: a reward's name, or an object with its ``name`` and its arguments; see /v1/rewards."""
    effort: Effort | None = None
    """How much work the answer is worth; medium by default."""
    settings: Settings | None = None  # type: ignore[valid-type]
    """Single settings, which go before those of the effort."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds after which the best answer so far is returned."""
    token_budget: int | None = Field(default=None, ge=1)
    """Most tokens drawn and scored for an answer in all; then the best one so far is returned."""


class StreamOptions(_Part):
    """How an answer is streamed."""

    include_usage: bool | None = None
    """Whether a last chunk tells the usage."""


class JsonSchema(_Part):
    """A JSON schema with a name."""

    name: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    """The schema."""


class ResponseFormat(_Part):
    """What an answer has to look like: it guides as the reward ``json_schema``, where that is on offer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class SamplingRequest(_Part):
    """What both kinds of requests have in common."""

    # Further fields are looked at in `ets_agent.server.translation`: some are refused, the others are ignored.
    model_config = ConfigDict(extra="allow")

    model: str
    """The model that is served; see /v1/models."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of the answer."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Sampling temperature."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus sampling."""
    n: int | None = Field(default=None, ge=1)
    """Answers to each prompt, each from a run with a seed of its own."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """The same seed gives the same answers, where the model can seed. A negative one stands for itself plus 2**63."""
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    """Strings that end the answer; not part of its text."""
    stream: bool | None = None
    """Whether each block is sent as soon as it is chosen."""
    stream_options: StreamOptions | None = None
    ets: EtsOptions | None = None
    """How the answer is found."""

    @property
    def max_answer_tokens(self) -> int | None:
        """Most tokens of the answer, by whichever name."""
        return self.max_tokens

    @property
    def prompts(self) -> int:
        """How many prompts there are."""
        return 1

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def extra(self) -> dict[str, Any]:
        """Fields that have no meaning here."""
        return self.model_extra or {}


class ChatCompletionRequest(SamplingRequest):
    """A request to /v1/chat/completions."""

    messages: list[ChatRequestMessage] = Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)
    """The chat to continue."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of the answer, by its newer name."""
    response_format: ResponseFormat | None = None

    @property
    def max_answer_tokens(self) -> int | None:
        """Most tokens of the answer, by whichever name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def _refuse_tokens(value: Any) -> Any:
    if isinstance(value, list) and any(not isinstance(each, str) for each in value):
        raise ValueError("allowed: text, or a list of texts; tokens are not understood")
    return value


class CompletionRequest(SamplingRequest):
    """A request to /v1/completions."""

    prompt: Annotated[
        Annotated[str, Field(min_length=1)]
        | Annotated[
            list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)
        ],
        BeforeValidator(_refuse_tokens),
    ]
    """The text to continue, or several, which get ``n`` continuations each."""

    @property
    def prompts(self) -> int:
        """How many prompts there are."""
        return 1 if isinstance(self.prompt, str) else len(self.prompt)
