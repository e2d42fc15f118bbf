"""Puts answers into OpenAI's shapes, whole and in pieces: one class for chats, one for continuations of texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from pydantic import BaseModel

from ets_agent.guided import GuidedAnswer
from ets_agent.server.replies import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatMessage,
    Completion,
    CompletionTokensDetails,
    EtsReply,
    FinishReason,
    TextChoice,
    Usage,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What stands in every reply to a request.

    Attributes:
        name: Unique name of the answer, the trace id of its first run.
        created: When it was asked for, in seconds since 1970.
        model: The model, by the name that callers know.
        warnings: What is to be said of the request.
        choices: Answers to each prompt.
    """

    name: str
    created: int
    model: str
    warnings: list[str]
    choices: int


class Shape(Protocol):
    """How answers look; chunks are models of which only the fields that were set are sent."""

    def whole(self, answers: Mapping[int, GuidedAnswer]) -> BaseModel:
        """Return all answers, by the numbers of their choices, as one reply."""
        ...

    def opening(self, count: int) -> Iterator[BaseModel]:
        """Return what comes before the text of so many choices."""
        ...

    def piece(self, index: int, text: str) -> BaseModel:
        """Return some more text of a choice."""
        ...

    def closing(self, index: int, answer: GuidedAnswer) -> BaseModel:
        """Return what comes after the text of a choice."""
        ...

    def bill(self, answers: Mapping[int, GuidedAnswer]) -> BaseModel:
        """Return the usage of all choices, after all of them."""
        ...


class ChatShape:
    """Chat completions."""

    def __init__(self, heading: Heading) -> None:
        """Keep what every reply says."""
        self._heading = heading

    def whole(self, answers: Mapping[int, GuidedAnswer]) -> ChatCompletion:
        """Return all answers as one reply; see `Shape.whole`."""
        heading = self._heading
        return ChatCompletion(
            id=f"chatcmpl-{heading.name}",
            created=heading.created,
            model=heading.model,
            choices=[
                ChatChoice(
                    index=index,
                    message=ChatMessage(content=answer.text),
                    finish_reason=finish_reason(answer),
                    ets=EtsReply.of(answer, warnings=heading.warnings),
                )
                for index, answer in sorted(answers.items())
            ],
            usage=usage(answers, heading.choices),
        )

    def opening(self, count: int) -> Iterator[ChatCompletionChunk]:
        """Return the role of each choice; see `Shape.opening`."""
        for index in range(count):
            delta = ChatDelta(role="assistant", content="", refusal=None)
            yield self._chunk(ChatChunkChoice(index=index, delta=delta, finish_reason=None, logprobs=None))

    def piece(self, index: int, text: str) -> ChatCompletionChunk:
        """Return some more text; see `Shape.piece`."""
        delta = ChatDelta(content=text)
        return self._chunk(ChatChunkChoice(index=index, delta=delta, finish_reason=None, logprobs=None))

    def closing(self, index: int, answer: GuidedAnswer) -> ChatCompletionChunk:
        """Return the finish reason; see `Shape.closing`."""
        ets = EtsReply.of(answer, warnings=self._heading.warnings)
        reason = finish_reason(answer)
        return self._chunk(
            ChatChunkChoice(index=index, delta=ChatDelta(), finish_reason=reason, logprobs=None, ets=ets)
        )

    def bill(self, answers: Mapping[int, GuidedAnswer]) -> ChatCompletionChunk:
        """Return the usage; see `Shape.bill`."""
        return self._chunk(usage=usage(answers, self._heading.choices))

    def _chunk(self, *choices: ChatChunkChoice, usage: Usage | None = None) -> ChatCompletionChunk:
        heading = self._heading
        return ChatCompletionChunk(
            id=f"chatcmpl-{heading.name}",
            object="chat.completion.chunk",
            created=heading.created,
            model=heading.model,
            choices=list(choices),
            usage=usage,
        )


class TextShape:
    """Continuations of texts, by OpenAI's older interface."""

    def __init__(self, heading: Heading) -> None:
        """Keep what every reply says."""
        self._heading = heading

    def whole(self, answers: Mapping[int, GuidedAnswer]) -> Completion:
        """Return all answers as one reply; see `Shape.whole`."""
        choices = [self._choice(index, answer.text, answer) for index, answer in sorted(answers.items())]
        return self._completion(*choices, usage=usage(answers, self._heading.choices))

    def opening(self, count: int) -> Iterator[Completion]:
        """Return nothing: the text comes first; see `Shape.opening`."""
        return iter(())

    def piece(self, index: int, text: str) -> Completion:
        """Return some more text; see `Shape.piece`."""
        return self._completion(TextChoice(index=index, text=text, finish_reason=None, logprobs=None))

    def closing(self, index: int, answer: GuidedAnswer) -> Completion:
        """Return the finish reason; see `Shape.closing`."""
        return self._completion(self._choice(index, "", answer))

    def bill(self, answers: Mapping[int, GuidedAnswer]) -> Completion:
        """Return the usage; see `Shape.bill`."""
        return self._completion(usage=usage(answers, self._heading.choices))

    def _choice(self, index: int, text: str, answer: GuidedAnswer) -> TextChoice:
        ets = EtsReply.of(answer, warnings=self._heading.warnings)
        return TextChoice(index=index, text=text, finish_reason=finish_reason(answer), logprobs=None, ets=ets)

    def _completion(self, *choices: TextChoice, usage: Usage | None = None) -> Completion:
        heading = self._heading
        return Completion(
            id=f"cmpl-{heading.name}",
            object="text_completion",
            created=heading.created,
            model=heading.model,
            choices=list(choices),
            usage=usage,
        )


def finish_reason(answer: GuidedAnswer) -> FinishReason:
    """Return why an answer ended, in OpenAI's words: a search that was cut short has reached a limit."""
    return "stop" if answer.finish_reason == "stop" else "length"


def usage(answers: Mapping[int, GuidedAnswer], choices: int) -> Usage:
    """Return what answers cost together; what a proposal's rollouts cost to score stands under ``ets``.

    Args:
        answers: The answers, by the numbers of their choices.
        choices: So many answers in a row are to the same prompt, which counts once.
    """
    usages = [answer.usage for answer in answers.values()]
    drawn = sum(each.candidate_tokens + each.rollout_tokens for each in usages)
    prompts: dict[int, int] = {}
    for index, answer in answers.items():  # A choice without a place does not know its prompt's length; others do.
        prompts[index // choices] = max(prompts.get(index // choices, 0), answer.usage.prompt_tokens or 0)
    prompt = sum(prompts.values())
    text = sum(each.response_tokens or 0 for each in usages)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=drawn,
        total_tokens=prompt + drawn,
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=max(0, drawn - text)),
    )
