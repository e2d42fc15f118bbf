"""The fake server does what it is trusted with: vLLM's details, exact probabilities, faults that are what they say."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fake_server import FakeServer, ScriptedModel
from tests.fake_server.client import call

RESPONSES = {"a b": 4.0, "a c": 1.0, "d e f": 3.0}
CHAT = [{"role": "user", "content": "Which one?"}]
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(ScriptedModel(RESPONSES)) as running:
        yield running


@pytest.fixture
def prompt(server: FakeServer) -> list[int]:
    tokens: list[int] = call(server, "/tokenize", {"messages": CHAT}).json["tokens"]
    return tokens


def test_its_own_endpoints_are_vllms(server: FakeServer) -> None:
    (card,) = call(server, "/v1/models").json["data"]
    assert (card["id"], card["max_model_len"], card["owned_by"]) == ("scripted", 4096, "vllm")
    assert call(server, "/version").json == {"version": "0.32.0"}
    assert (call(server, "/health").status, call(server, "/health").raw) == (200, b"")
    assert call(server, "/nothing").json == {"detail": "Not Found"}
    assert call(server, COMPLETIONS).status == 405
    assert call(server, "/health", x_request_id="mine").headers["x-request-id"] == "mine"


@pytest.mark.parametrize("text", ["Which one?", "a b", " d  e\n", "größer als 3 €?", "a b\nd e f"])
def test_tokens_say_the_text(server: FakeServer, text: str) -> None:
    plain = call(server, "/tokenize", {"prompt": text, "add_special_tokens": False, "return_token_strs": True}).json
    assert call(server, "/detokenize", {"tokens": plain["tokens"]}).json == {"prompt": text}
    assert plain["count"] == len(plain["tokens"]) == len(plain["token_strs"])
    marked = call(server, "/tokenize", {"prompt": text}).json
    assert marked["token_strs"] is None
    assert len(marked["tokens"]) == plain["count"] + 1
    again = call(server, "/detokenize", {"tokens": marked["tokens"]}).json["prompt"]
    assert call(server, "/tokenize", {"prompt": again}).json["tokens"] == marked["tokens"]


def test_a_response_goes_on_from_its_tokens_or_its_text(server: FakeServer, prompt: list[int]) -> None:
    wish = {"max_tokens": 1, "n": 40, "seed": 3, "return_token_ids": True}
    for first in call(server, COMPLETIONS, {"prompt": prompt, **wish}).choices:
        assert first["finish_reason"] == "length"
        assert first["prompt_token_ids"] == prompt
        rest: dict[str, Any] = {"n": 5, "seed": 1, "return_token_ids": True}
        seen = call(server, COMPLETIONS, {"prompt": prompt + first["token_ids"], **rest}).choices
        assert {first["text"] + choice["text"] for choice in seen} <= RESPONSES.keys()
        assert {choice["token_ids"][-1] for choice in seen} == {0}, "the end is one of the tokens"
        text = call(server, COMPLETIONS, {"prompt": f"Which one?\n{first['text']}", **rest}).choices
        assert [choice["text"] for choice in text] == [choice["text"] for choice in seen]
        chat = [*CHAT, {"role": "assistant", "content": first["text"]}]
        opened = {"messages": chat, "continue_final_message": True, "add_generation_prompt": False}
        assert call(server, "/tokenize", opened).json["tokens"] == prompt + first["token_ids"]


def test_row_k_has_the_kth_successor_of_the_seed(server: FakeServer, prompt: list[int]) -> None:
    many = call(server, COMPLETIONS, {"prompt": prompt, "n": 30, "seed": -5}).choices
    single = [call(server, COMPLETIONS, {"prompt": prompt, "seed": seed}).choices[0] for seed in range(-5, 25)]
    assert [choice["text"] for choice in many] == [choice["text"] for choice in single]
    assert [choice["index"] for choice in many] == list(range(30))
    texts = [choice["text"] for choice in many]
    assert texts[:5] != texts[10:5:-1], "a negative seed is a seed of its own"
    unseeded = {tuple(c["text"] for c in call(server, COMPLETIONS, {"prompt": prompt, "n": 30}).choices) for _ in "ab"}
    assert len(unseeded) == 2


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({}, {"a b": 4 / 8, "a c": 1 / 8, "d e f": 3 / 8}),
        ({"temperature": 0.5}, {"a b": 25 / 34 * 16 / 17, "a c": 25 / 34 / 17, "d e f": 9 / 34}),
        ({"top_k": 1}, {"a b": 1.0}),
        ({"top_p": 0.7}, {"a b": 5 / 8, "d e f": 3 / 8}),
        ({"min_p": 0.5}, {"a b": 5 / 8, "d e f": 3 / 8}),
        ({"min_p": 0.5, "temperature": 0.5}, {"a b": 1.0}),
    ],
)
def test_draws_are_distributed_as_scripted(
    server: FakeServer, prompt: list[int], wish: dict[str, float], expected: dict[str, float]
) -> None:
    draws = 4000
    choices = call(server, COMPLETIONS, {"prompt": prompt, "n": draws, "seed": 11, **wish}).choices
    counts = Counter(choice["text"] for choice in choices)
    assert counts.keys() <= expected.keys()
    distance = sum((counts[text] - draws * p) ** 2 / (draws * p) for text, p in expected.items())
    assert distance < 18.4, "chi-square with two degrees of freedom exceeds this once in 10,000 times"


@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_log_probabilities_are_exact(processed: bool, temperature: float) -> None:
    tempered = processed and temperature == 0.5
    first = {"a": 25 / 34, "d": 9 / 34} if tempered else {"a": 5 / 8, "d": 3 / 8}
    second = {" b": 16 / 17, " c": 1 / 17} if tempered else {" b": 4 / 5, " c": 1 / 5}
    probabilities = {**first, **second, " e": 1.0, " f": 1.0, "<|end|>": 1.0}
    with FakeServer(ScriptedModel(RESPONSES), processed_logprobs=processed) as server:
        rows = 40 if temperature else 1
        wish = {"prompt": "Which?", "n": rows, "seed": 1, "temperature": temperature, "logprobs": 2}
        for choice in call(server, COMPLETIONS, wish).choices:
            told = choice["logprobs"]
            assert "".join(told["tokens"]) == choice["text"] + "<|end|>"
            expected = [math.log(probabilities[token]) for token in told["tokens"]]
            assert told["token_logprobs"] == pytest.approx(expected)
            assert told["text_offset"] == [len("".join(told["tokens"][:i])) for i in range(len(told["tokens"]))]
            assert told["top_logprobs"][0] == pytest.approx({token: math.log(p) for token, p in first.items()})
            assert sorted(told["top_logprobs"][-1].values()) == [-9999.0, 0.0], "JSON has no minus infinity"
        for choice in call(server, COMPLETIONS, {**wish, "logprobs": 1}).choices:
            (token, *_), (step, *_) = choice["logprobs"]["tokens"], choice["logprobs"]["top_logprobs"]
            assert step.keys() == {"a", token}, "the most probable one, and the chosen one as well"
        chat = call(server, CHATS, {"messages": CHAT, "seed": 1, "logprobs": True, "temperature": temperature})
        content = chat.choices[0]["logprobs"]["content"]
        assert content[0]["top_logprobs"] == []
        assert content[-1]["token"] == "<|end|>"
        chat = call(server, CHATS, {"messages": CHAT, "n": 20, "seed": 1, "logprobs": True, "top_logprobs": 2})
        firsts = [choice["logprobs"]["content"][0] for choice in chat.choices]
        alternatives = {(first["token"], *(other["token"] for other in first["top_logprobs"])) for first in firsts}
        assert alternatives == {("a", "a", "d"), ("d", "d", "a")}, "vLLM has the chosen one first"
        assert [c["logprob"] for c in content] == pytest.approx([math.log(probabilities[c["token"]]) for c in content])
        # Scores of prompts know no temperature.
        scored = call(server, COMPLETIONS, {"prompt": "Which?a b", "temperature": 0.5, "prompt_logprobs": 0})
        tail = [entry for step in scored.choices[0]["prompt_logprobs"][-2:] for entry in step.values()]
        assert [entry["logprob"] for entry in tail] == pytest.approx([math.log(5 / 8), math.log(4 / 5)])


def test_truncated_tokens_are_told_as_minus_9999() -> None:
    with FakeServer(ScriptedModel(RESPONSES), processed_logprobs=True) as server:
        wish = {"prompt": "Which?", "top_k": 1, "logprobs": 2, "max_tokens": 1}
        (choice,) = call(server, COMPLETIONS, wish).choices
        assert choice["logprobs"]["top_logprobs"] == [{"a": 0.0, "d": -9999.0}]


def test_prompts_are_scored_and_echoed(server: FakeServer, prompt: list[int]) -> None:
    (drawn,) = call(server, COMPLETIONS, {"prompt": prompt, "seed": 1, "return_token_ids": True}).choices
    given: dict[str, Any] = {"prompt": prompt + drawn["token_ids"], "max_tokens": 1, "prompt_logprobs": 1}
    steps = call(server, COMPLETIONS, given).choices[0]["prompt_logprobs"]
    assert steps[0] is None
    assert len(steps) == len(prompt) + len(drawn["token_ids"])
    scores = [step[str(token)]["logprob"] for step, token in zip(steps[1:], given["prompt"][1:], strict=True)]
    assert math.exp(sum(scores[len(prompt) - 1 :])) == pytest.approx(RESPONSES[drawn["text"]] / 8)
    given = {"prompt": [*prompt, 261, 262], "prompt_logprobs": 2}
    *_, first, second = call(server, COMPLETIONS, given).choices[0]["prompt_logprobs"]
    assert {entry["decoded_token"]: entry["rank"] for entry in first.values()} == {"d": 2, "a": 1}
    assert next(iter(second.values())) == {"decoded_token": " e", "rank": 1, "logprob": 0.0}
    bare = {"prompt": "Which?a b", "echo": True, "max_tokens": 0, "logprobs": 0}
    (echoed,) = call(server, COMPLETIONS, bare).choices
    assert echoed["text"] == "Which?a b"
    assert echoed["logprobs"]["token_logprobs"][0] is None
    assert echoed["logprobs"]["token_logprobs"][-2:] == pytest.approx([math.log(5 / 8), math.log(4 / 5)])
    (more,) = call(server, COMPLETIONS, {**bare, "max_tokens": 2}).choices
    assert more["text"] == "Which?a b"
    (said,) = call(server, COMPLETIONS, {**bare, "prompt": [*prompt, 258], "max_tokens": 0}).choices
    assert said["text"] == "user: Which one?\n<|response|>a"
    assert more["logprobs"]["tokens"][-3:] == ["a", " b", "<|end|>"]
    unmarked = call(server, "/tokenize", {"prompt": "Which?", "add_special_tokens": False}).json["tokens"]
    (found,) = call(server, COMPLETIONS, {"prompt": [*unmarked, 258, 259], "prompt_logprobs": 0}).choices
    assert found["text"] == ""
    told = [entry["logprob"] for step in found["prompt_logprobs"][1:] for entry in step.values()]
    assert told[-2:] == pytest.approx([math.log(5 / 8), math.log(4 / 5)]), "the response is found without its mark"
    assert set(told[:-2]) == {-math.log(2 + 256 + 6)}, "all tokens are alike in a question"
    (alien,) = call(server, COMPLETIONS, {"prompt": [*prompt, 258, 262, 259], "prompt_logprobs": 0}).choices
    told = [entry["logprob"] for step in alien["prompt_logprobs"][-3:] for entry in step.values()]
    assert told == [pytest.approx(math.log(5 / 8)), -9999.0, -9999.0], "a b, a c, but never a e b"
    assert (alien["text"], alien["finish_reason"]) == ("", "stop"), "a response that is none of the script's just ends"


def test_a_stream_says_what_the_whole_answer_says(server: FakeServer) -> None:
    def streamed(path: str, ask: dict[str, Any]) -> list[Any]:
        reply = call(server, path, {**ask, "stream": True, "stream_options": {"include_usage": True}})
        assert reply.headers["content-type"].startswith("text/event-stream")
        *lines, done, end = reply.raw.decode().split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        return [json.loads(line.removeprefix("data: ")) for line in lines]

    ask = {"prompt": "Which?", "n": 3, "seed": 2, "logprobs": 1, "return_token_ids": True}
    whole = call(server, COMPLETIONS, ask)
    *chunks, usage = streamed(COMPLETIONS, ask)
    assert (usage["choices"], usage["usage"]) == ([], whole.json["usage"])
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert len(parts) == len(choice["text"].split())
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [token for part in parts for token in part["token_ids"]] == choice["token_ids"]
        for name, values in choice["logprobs"].items():
            assert [value for part in parts for value in part["logprobs"][name]] == values
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["stop"]
        assert parts[0]["prompt_token_ids"] == choice["prompt_token_ids"]
    ask = {"messages": CHAT, "seed": 2, "logprobs": True}
    (said,) = call(server, CHATS, ask).choices
    *chunks, _ = streamed(CHATS, ask)
    deltas = [chunk["choices"][0] for chunk in chunks]
    assert "".join(delta["delta"]["content"] for delta in deltas) == said["message"]["content"]
    assert [entry for delta in deltas[1:] for entry in delta["logprobs"]["content"]] == said["logprobs"]["content"]
    assert b"usage" not in call(server, CHATS, {**ask, "stream": True}).raw
    refused = call(server, COMPLETIONS, {"prompt": "x", "stream": True, "n": 0})
    assert refused.json["error"]["code"] == 400


def test_stop_strings_end_a_row(server: FakeServer) -> None:
    wish = {"prompt": "Which?", "seed": 0, "n": 20, "stop": ["e", "b"], "return_token_ids": True, "logprobs": 0}
    plain = call(server, COMPLETIONS, wish).choices
    assert {(c["text"], c["finish_reason"], c["stop_reason"], len(c["token_ids"])) for c in plain} == {
        ("a ", "stop", "b", 2),
        ("a c", "stop", None, 3),
        ("d ", "stop", "e", 2),
    }
    kept = call(server, COMPLETIONS, {**wish, "include_stop_str_in_output": True}).choices
    assert {choice["text"] for choice in kept} == {"a b", "a c", "d e"}
    assert all(len(choice["logprobs"]["tokens"]) == len(choice["token_ids"]) for choice in plain)
    both = call(server, COMPLETIONS, {**wish, "stop": [" e", " ", "e"]}).choices
    assert {choice["stop_reason"] for choice in both} == {" "}, "the one that is complete first"
    across = call(server, COMPLETIONS, {**wish, "stop": "e "}).choices
    assert {choice["text"] for choice in across} == {"a b", "a c", "d "}
    first = kept[0]["token_ids"][0]
    ended = call(server, COMPLETIONS, {**wish, "stop": "z", "stop_token_ids": [first]}).choices
    assert {choice["stop_reason"] for choice in ended} == {first, None}
    assert {(len(c["token_ids"]), c["text"]) for c in ended if c["stop_reason"]} == {(1, "")}


def test_prompts_come_one_or_several_as_text_or_as_tokens(server: FakeServer, prompt: list[int]) -> None:
    for given, count in ((["Which?", "What?"], 2), ([prompt, prompt[1:]], 2), ([prompt], 1), (["Which?"], 1)):
        reply = call(server, COMPLETIONS, {"prompt": given, "n": 3, "max_tokens": 1})
        assert [choice["index"] for choice in reply.choices] == list(range(3 * count))
        assert reply.json["usage"]["completion_tokens"] == 3 * count
    for path, ask in ((COMPLETIONS, {"prompt": prompt}), (CHATS, {"messages": CHAT})):
        usage = call(server, path, {**ask, "temperature": 0}).json["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(prompt), 3), "the end counts"
        assert usage["total_tokens"] == len(prompt) + 3


@pytest.mark.parametrize(
    ("body", "status", "message", "param"),
    [
        ({"prompt": "x", "model": "other"}, 404, "The model `other` does not exist", "model"),
        ({"prompt": [5, 100_000]}, 400, "Token id 100000 is out of vocabulary", None),
        ({"prompt": [2 + 256 + 6]}, 400, "Token id 264 is out of vocabulary", None),
        ({"prompt": [5] * 5000}, 400, "your prompt contains 5000 input tokens", "input_tokens"),
        ({"prompt": "x" * 5000}, 400, "contains at least 4097 input tokens", "input_tokens"),
        ({"prompt": [5] * 4096}, 400, "max_tokens must be at least 1, got 0", "max_tokens"),
        ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens must be at least 1, got 0", "max_tokens"),
        ({"prompt": "x", "max_tokens": 5000}, 400, "cannot be greater than max_model_len=4096", "max_tokens"),
        ({"prompt": ""}, 400, "must be provided and non-empty", "prompt"),
        ({"prompt": []}, 400, "at least one prompt", None),
        ({"prompt": [[]]}, 400, "prompt cannot be empty", None),
        ({"prompt": "x", "n": 0}, 400, "n must be at least 1", None),
        ({"prompt": "x", "n": 4, "temperature": 0}, 400, "n must be 1 when using greedy sampling, got 4", None),
        ({"prompt": "x", "n": "many"}, 400, "1 validation error", "body.n"),
        ({"prompt": "x", "seed": 2**63}, 400, "less than or equal to 9223372036854775807", "body.seed"),
        ({"prompt": "x", "logprobs": 21}, 400, "greater than max allowed: 20", "logprobs"),
        ({"prompt": "x", "logprobs": -1}, 400, "greater than max allowed: 20", "logprobs"),
        ({"prompt": "x", "prompt_logprobs": 21}, 400, "greater than max allowed: 20", "prompt_logprobs"),
        ({"prompt": "x", "temperature": 2.5}, 400, "temperature must be in", "temperature"),
        ({"prompt": "x", "temperature": -1}, 400, "temperature must be non-negative", "temperature"),
        ({"prompt": "x", "top_p": 0}, 400, "top_p must be in", "top_p"),
        ({"prompt": "x", "top_k": -2}, 400, "top_k must be 0", None),
        ({"prompt": "x", "min_p": 2}, 400, "min_p must be in", None),
        ({"prompt": "x", "stop": [""]}, 400, "stop cannot contain an empty string", None),
        ({"prompt": "x", "logit_bias": {"5": 1}}, 400, "does not do logit_bias", "logit_bias"),
        (b"{", 400, "JSON", "body"),
    ],
)
def test_bad_requests_are_refused_in_vllms_words(
    server: FakeServer, body: Any, status: int, message: str, param: str | None
) -> None:
    reply = call(server, COMPLETIONS, body)
    error = reply.json["error"]
    assert (reply.status, error["code"], error["param"]) == (status, status, param)
    assert message in error["message"]


def test_the_whole_vocabulary_is_told_where_the_server_allows_it(prompt: list[int]) -> None:
    with FakeServer(ScriptedModel(RESPONSES), max_logprobs=-1) as server:
        wish = {
            "prompt": prompt,
            "max_tokens": 1,
            "logprobs": -1,
            "prompt_logprobs": -1,
            "return_tokens_as_token_ids": True,
        }
        (choice,) = call(server, COMPLETIONS, wish).choices
        (step,) = choice["logprobs"]["top_logprobs"]
        assert sum(map(math.exp, step.values())) == pytest.approx(1.0)
        assert step.keys() == {f"token_id:{token}" for token in range(2 + 256 + 6)}
        assert all(len(step) == len(choice["logprobs"]["top_logprobs"][0]) for step in choice["prompt_logprobs"][1:])


def test_plain_servers_take_text_and_refuse_what_they_do_not_know() -> None:
    with FakeServer(ScriptedModel(RESPONSES), profile="completions") as server:
        ask = {"model": "scripted", "prompt": "Which?a", "n": 2, "logprobs": 1, "seed": 0}
        reply = call(server, COMPLETIONS, ask)
        assert {choice["text"] for choice in reply.choices} <= {" b", " c"}
        assert reply.choices[0].keys() == {"index", "text", "logprobs", "finish_reason"}
        for wrong in (
            {"prompt": [1, 2]},
            {"prompt": [[1, 2]]},
            {"top_k": 3},
            {"return_token_ids": True},
            {"echo": True},
            {"logprobs": 6},
            {"model": None},
        ):
            reply = call(server, COMPLETIONS, {**ask, **wrong})
            assert (reply.status, reply.json["error"]["type"]) == (400, "invalid_request_error"), wrong
        assert call(server, "/tokenize", {"prompt": "x"}).status == 404
        assert call(server, CHATS, {"model": "scripted", "messages": CHAT}).status == 404
        assert "max_model_len" not in call(server, "/v1/models").json["data"][0]
        assert call(server, COMPLETIONS, {**ask, "model": "other"}).json["error"]["code"] == "model_not_found"
    with FakeServer(ScriptedModel(RESPONSES), profile="completions_no_n") as server:
        assert call(server, COMPLETIONS, ask).status == 400
        (choice,) = call(server, COMPLETIONS, {**ask, "n": 1}).choices
        assert choice["logprobs"] is None


def test_chat_servers_have_chat_only() -> None:
    ask = {"model": "scripted", "messages": CHAT, "n": 3, "logprobs": True, "top_logprobs": 1}
    with FakeServer(ScriptedModel(RESPONSES), profile="chat") as server:
        choices = call(server, CHATS, ask).choices
        for choice in choices:
            content = choice["logprobs"]["content"]
            assert "".join(part["token"] for part in content) == choice["message"]["content"], "no place for the end"
            assert content[0]["top_logprobs"][0]["token"] == "a", "the most probable one, whichever was drawn"
        assert len(choices) == 3
        assert call(server, CHATS, {**ask, "top_k": 3}).status == 400
        assert call(server, COMPLETIONS, {"model": "scripted", "prompt": "x"}).status == 404
    with FakeServer(ScriptedModel(RESPONSES), profile="chat_no_n") as server:
        assert len(call(server, CHATS, {**ask, "top_k": 3}).choices) == 1


def test_a_key_is_asked_for_and_not_kept() -> None:
    with FakeServer(ScriptedModel(RESPONSES), api_key="sk-right-key", profile="chat") as server:
        assert call(server, "/health").status == 200
        assert call(server, "/v1/models").status == 401
        wrong = call(server, "/v1/models", authorization="Bearer sk-wrong-key")
        assert (wrong.status, wrong.json["error"]["code"]) == (401, "invalid_api_key")
        assert b"sk-wrong-key" not in wrong.raw
        assert call(server, "/v1/models", authorization="Bearer sk-right-key").status == 200
        assert not any("authorization" in record.headers for record in server.records.all())
    with FakeServer(ScriptedModel(RESPONSES), api_key="sk-right-key") as server:
        assert call(server, "/v1/models").json == {"error": "Unauthorized"}
