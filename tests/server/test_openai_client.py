"""OpenAI's own client, pointed at a server of the embedded model; what comes is checked against OpenAI's types."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import openai
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.server.openai_shapes import conforming
from tests.server.served import PATIENCE, Served, wait_until

MODEL = "tiny/qwen3"
QUESTION = "Ada has 4 boxes with 25 cards in each. Ada gives 30 to Ben. How many cards does Ada have now?"
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
ETS = {"ets": {"effort": "medium"}}


def plain(client: openai.OpenAI, **fields: Any) -> ChatCompletion:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=MESSAGES, extra_body={**ETS, **fields.pop("extra_body", {})}, **fields
    )
    completion = conforming(ChatCompletion, json.loads(raw.text))
    trace_ids = [choice.ets["trace_id"] for choice in completion.choices]  # type: ignore[attr-defined]
    assert raw.headers["x-ets-trace-id"].split(",") == trace_ids
    assert completion.id == f"chatcmpl-{trace_ids[0]}"
    return completion


def streamed(client: openai.OpenAI, **fields: Any) -> list[ChatCompletionChunk]:
    stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, extra_body=ETS, **fields)
    return [conforming(ChatCompletionChunk, chunk.model_dump(exclude_unset=True)) for chunk in stream]


def text_of(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(delta.content or "" for delta in deltas)


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    completion = plain(client, seed=1)
    (choice,) = completion.choices
    assert completion.model == MODEL
    assert choice.message.content is not None
    assert choice.message.content.endswith("#### 70")
    assert choice.finish_reason == "stop"
    ets = choice.ets  # type: ignore[attr-defined]
    assert ets["answer"] == "70"
    assert 0 < ets["confidence"] <= 1
    assert (ets["reward"], ets["cut_short"], ets["seed"], ets["warnings"]) == (1.0, False, 1, [])


def test_the_bill_has_real_numbers_of_tokens(client: openai.OpenAI) -> None:
    completion = plain(client, seed=1, n=2)
    usage = completion.usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    drawn = [choice.ets["usage"] for choice in completion.choices]  # type: ignore[attr-defined]
    assert usage.prompt_tokens == 39, "once for both"
    assert usage.completion_tokens == sum(each["candidate_tokens"] + each["rollout_tokens"] for each in drawn)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details.reasoning_tokens == usage.completion_tokens - 2 * 28


def test_a_stream_has_the_text_of_the_whole_answer(client: openai.OpenAI) -> None:
    whole = plain(client, seed=1).choices[0]
    chunks = streamed(client, seed=1, stream_options={"include_usage": True})
    first, *middle, last, bill = chunks
    assert first.choices[0].delta.role == "assistant"
    assert len(middle) == 2, "one chunk for each block"
    assert text_of(chunks) == whole.message.content
    assert [chunk.choices[0].finish_reason for chunk in [first, *middle, last]] == [None, None, None, "stop"]
    assert last.choices[0].ets["answer"] == "70"  # type: ignore[attr-defined]
    assert bill.choices == []
    assert bill.usage is not None
    assert bill.usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_tells_no_usage_unless_asked(client: openai.OpenAI) -> None:
    assert all(chunk.usage is None and chunk.choices for chunk in streamed(client, seed=1))


def test_two_choices_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    both = plain(client, n=2, seed=5)
    assert [choice.index for choice in both.choices] == [0, 1]
    seeds = [choice.ets["seed"] for choice in both.choices]  # type: ignore[attr-defined]
    assert len(set(seeds)) == 2
    again = [plain(client, seed=seed).choices[0].message.content for seed in seeds]
    assert again == [choice.message.content for choice in both.choices], "a seed that was told gives the answer again"


def test_two_choices_are_streamed_side_by_side(client: openai.OpenAI) -> None:
    whole = plain(client, n=2, seed=5)
    chunks = streamed(client, n=2, seed=5)
    assert [text_of(chunks, index) for index in (0, 1)] == [choice.message.content for choice in whole.choices]
    finished = [choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert sorted(finished) == [0, 1]


@pytest.mark.parametrize("stop", ["####", ["no such text", "####"]])
def test_stop_strings_end_the_text(client: openai.OpenAI, stop: Any) -> None:
    (choice,) = plain(client, seed=1, stop=stop).choices
    assert choice.message.content
    assert "####" not in choice.message.content
    assert choice.finish_reason == "stop"


def test_the_same_seed_gives_the_same_text(client: openai.OpenAI) -> None:
    hot = {"temperature": 1.5, "extra_body": {"ets": {"settings": {"kl_coef": 10}}}}
    texts = [plain(client, seed=seed, **hot).choices[0].message.content for seed in (3, 3, 4, 5)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_the_budget_ends_the_text(client: openai.OpenAI) -> None:
    (choice,) = plain(client, seed=1, max_completion_tokens=5).choices
    assert choice.finish_reason == "length"


def test_texts_are_continued(client: openai.OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model=MODEL, prompt=[QUESTION, "Ben has 3 eggs."], n=2, max_tokens=12, seed=1, extra_body=ETS
    )
    completion = conforming(Completion, json.loads(raw.text))
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    assert completion.id.startswith("cmpl-")
    stream = client.completions.create(
        model=MODEL, prompt=[QUESTION, "Ben has 3 eggs."], n=2, max_tokens=12, seed=1, extra_body=ETS, stream=True
    )
    texts = [""] * 4
    for chunk in stream:
        for choice in conforming(Completion, _as_sent(chunk)).choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in completion.choices]


def _as_sent(chunk: Completion) -> Any:
    """Give chunks of texts the reason that OpenAI's type demands and its server leaves null."""
    data = chunk.model_dump(exclude_unset=True)
    for choice in data["choices"]:
        choice["finish_reason"] = choice["finish_reason"] or "stop"
    return data


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert conforming(Model, model.model_dump(exclude_unset=True)).id == MODEL
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


def test_another_model_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-5' is served here; allowed: tiny/qwen3") as caught:
        client.chat.completions.create(model="gpt-5", messages=MESSAGES)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_wrong_key_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="wrong").chat.completions.create(model=MODEL, messages=MESSAGES)
    assert caught.value.code == "invalid_api_key"


def test_a_body_that_is_too_large_is_refused(client: openai.OpenAI) -> None:
    huge: list[Any] = [{"role": "user", "content": "x" * 3_000_000}]
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=MODEL, messages=huge)
    assert caught.value.status_code == 413
    assert caught.value.code == "request_too_large"


def test_a_prompt_that_is_too_long_is_refused(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model=MODEL, prompt="one two " * 1000, stream=stream)
        assert caught.value.code == "context_length_exceeded"


def test_a_stream_that_is_closed_ends_its_run(
    client: openai.OpenAI, tiny: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    extend, calls = tiny.backend.extend, itertools.count()

    async def extend_once(*args: Any, **kwargs: Any) -> Any:
        if next(calls):
            await asyncio.Event().wait()  # So that the run is certainly under way when its stream is closed.
        return await extend(*args, **kwargs)

    monkeypatch.setattr(tiny.backend, "extend", extend_once)
    stream = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, extra_body={"ets": {"effort": "high"}}, timeout=PATIENCE
    )
    next(iter(stream))
    assert tiny.reasoning.places.active == 1
    stream.close()
    wait_until(lambda: tiny.reasoning.places.active == 0)
