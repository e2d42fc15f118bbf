"""What an agent asks: a question, how answers are judged, and how much work and time they are worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    model_validator,
)

from backends import Prompt
from ets_agent._validation import Float, Int, explain
from ets_agent.config import ETSConfig
from ets_agent.errors import ConfigError

Effort = Literal["low", "medium", "high"]

EFFORTS: Mapping[Effort, Mapping[str, int]] = {
    "low": {"num_candidates": 4, "num_rollouts": 2, "num_steps": 2},
    "medium": {"num_candidates": 8, "num_rollouts": 4, "num_steps": 4},
    "high": {"num_candidates": 16, "num_rollouts": 8, "num_steps": 4},
}
"""The settings behind each effort; each draws about three times as many tokens as the one before."""

_CONFIG = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class RequestError(ValueError):
    """A request asks for something that does not exist or is not allowed; the message says what is.

    Args:
        message: What is wrong and what is allowed.
        field: The field of `GuidedRequest` that it is about, such as ``reward`` or ``settings.temperature``; None where
            it is about no single one.
    """

    def __init__(self, message: str, *, field: str | None = None) -> None:
        """Keep both."""
        super().__init__(message)
        self.field = field

    @classmethod
    def of(cls, error: ConfigError) -> RequestError:
        """Return the error of a request whose settings are not usable."""
        setting = error.setting
        own = setting is None or setting in GuidedRequest.model_fields
        return cls(str(error), field=setting if own else f"settings.{setting}")


class Message(BaseModel):
    """A chat message."""

    model_config = _CONFIG

    role: str
    """Who says it: system, user or assistant."""
    content: str
    """What is said."""


def _optional_settings() -> type[BaseModel]:
    """Return a model of those settings of `ETSConfig` that have no field of their own in a request, none required."""
    fields: dict[str, Any] = {
        name: (
            (Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation) | None,  # type: ignore[operator]
            Field(default=None, description=field.description),
        )
        for name, field in ETSConfig.model_fields.items()
        if name not in ("max_tokens", "timeout")
    }
    return create_model(
        "Settings", __config__=_CONFIG, __doc__="Settings of ETS, instead of those of an effort.", **fields
    )


Settings = _optional_settings()
"""Fields of `ETSConfig`; None leaves a setting as it is."""


def _check_reward(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Say what is allowed in one sentence, where pydantic would report each member of the union."""
    try:
        return check(value)
    except ValidationError:
        raise ValueError("allowed: a reward's name, or an object with its name and its arguments") from None


class GuidedRequest(BaseModel):
    """One question to guided reasoning. Exactly one of ``question``, ``messages`` and ``continuation`` is given."""

    model_config = _CONFIG

    question: str | None = None
    """What to answer, complete in itself: the model sees nothing else."""
    messages: tuple[Message, ...] | None = None
    """A chat to continue."""
    continuation: str | None = None
    """A text that the model goes on with as it stands, without a chat template."""
    reward: Annotated[str | dict[str, Any], WrapValidator(_check_reward)] | None = None
    """How answers are judged: a reward's name, or an object with its ``name`` and its arguments."""
    effort: Effort = "medium"
    """How much work the answer is worth."""
    settings: Settings | None = None  # type: ignore[valid-type]
    """Single settings, which go before those of the effort."""
    max_tokens: Int | None = Field(default=None, ge=1)
    """Most tokens of the answer."""
    timeout: Float | None = Field(default=None, gt=0)
    """Seconds after which the best answer so far is returned."""
    token_budget: Int | None = Field(default=None, ge=1)
    """Most tokens drawn and scored for this answer in all; then the best one so far is returned."""

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        given = [name for name in ("question", "messages", "continuation") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of question, messages and continuation is needed, not {' and '.join(given) or 'none'}"
            )
        return self

    def prompt(self, *, chat: bool) -> Prompt:
        """Return what the model is given.

        Args:
            chat: Whether the model takes chat messages; without, a question is continued as text.

        Raises:
            RequestError: The model takes no chat.
        """
        if self.messages is not None:
            if not chat:
                raise RequestError(
                    "this model takes no chat messages; give a question or a continuation", field="messages"
                )
            return [message.model_dump() for message in self.messages]
        if self.continuation is not None:
            return self.continuation
        assert self.question is not None
        return [{"role": "user", "content": self.question}] if chat else self.question

    @classmethod
    def build(cls, given: GuidedRequest | Mapping[str, Any] | str) -> GuidedRequest:
        """Return a request made of a question alone, or of fields by name, where None is as good as nothing.

        Raises:
            RequestError: It is none; the message names each field, what was given and what is allowed.
        """
        if isinstance(given, GuidedRequest):
            return given
        fields = {"question": given} if isinstance(given, str) else given
        if not isinstance(fields, Mapping):
            raise RequestError(f"a request is a question or an object with its fields, not {type(given).__name__}")
        try:
            return cls.model_validate({name: value for name, value in fields.items() if value is not None})
        except ValidationError as error:
            location = error.errors(include_url=False)[0]["loc"]
            # Nothing below a field or a setting, such as a member of a union: callers do not know of it.
            field = ".".join(map(str, location[: 2 if location[:1] == ("settings",) else 1])) or None
            raise RequestError(explain(error, cls, what="field"), field=field) from None
