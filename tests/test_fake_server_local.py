"""An embedded model behind the fake server is the embedded model."""

from __future__ import annotations

import time
from typing import Any

import pytest

from backends import Completion, SamplingParams
from tests.fake_server import FakeServer
from tests.fake_server.client import call, sent
from tests.fake_server.local import LocalModel

CHAT = [{"role": "user", "content": "Which one?"}]
COMPLETIONS = "/v1/completions"


@pytest.mark.parametrize("processed", [False, True])
async def test_log_probabilities_are_the_local_backends(tiny: Any, processed: bool) -> None:
    question = [{"role": "user", "content": "Tom has 3 apples and buys 4 more. How many apples does he have now?"}]
    with FakeServer(LocalModel(tiny), processed_logprobs=processed) as server:
        ids = call(server, "/tokenize", {"messages": question}).json["tokens"]
        for params in (
            SamplingParams(),
            SamplingParams(temperature=1.5),
            SamplingParams(temperature=1.2, top_k=5),
            SamplingParams(temperature=0.0),
        ):
            state = await tiny.begin(question, max_tokens=64, params=params)
            assert list(state.prompt_ids) == ids
            plain = await tiny.begin(question, max_tokens=64, params=SamplingParams())
            rows = 1 if params.greedy else 4
            wish = {"temperature": params.temperature, "top_k": params.top_k, "max_tokens": 64, "n": rows, "seed": 1}
            for top in (0, 2):
                ask = {"prompt": ids, "return_token_ids": True, "logprobs": top, **wish}
                for choice in call(server, COMPLETIONS, ask).choices:
                    tokens = choice["token_ids"]
                    drawn = Completion(text="", token_ids=tuple(tokens), finish_reason=choice["finish_reason"])
                    ((raw,),), ((sampled,),) = (
                        await tiny.score([plain], [[drawn]]),
                        await tiny.score([state], [[drawn]]),
                    )
                    told = sum(choice["logprobs"]["token_logprobs"])
                    assert told == pytest.approx(sampled if processed and not params.greedy else raw, abs=1e-3)
                    assert all(len(step) in (top, top + 1) for step in choice["logprobs"]["top_logprobs"] if top)
                    given = {"prompt": ids + tokens, "max_tokens": 1, "prompt_logprobs": 0, "temperature": 0.3}
                    steps = call(server, COMPLETIONS, given).choices[0]["prompt_logprobs"][len(ids) :]
                    scores = [step[str(token)]["logprob"] for step, token in zip(steps, tokens, strict=True)]
                    assert sum(scores) == pytest.approx(raw, abs=1e-3), "prompts are scored raw"


def test_rows_end_as_vllm_ends_them(tiny: Any) -> None:
    with FakeServer(LocalModel(tiny, max_model_len=200)) as server:
        ids = call(server, "/tokenize", {"messages": CHAT}).json["tokens"]
        ask = {"prompt": ids, "temperature": 0, "return_token_ids": True, "max_tokens": 150}
        (whole,) = call(server, COMPLETIONS, ask).choices
        assert (whole["finish_reason"], whole["stop_reason"], whole["token_ids"][-1]) == ("stop", None, 2)
        (cut,) = call(server, COMPLETIONS, {**ask, "stop": whole["text"][2:5]}).choices
        assert (cut["text"], cut["stop_reason"]) == (whole["text"][:2], whole["text"][2:5])
        third = whole["token_ids"][2]
        (ended,) = call(server, COMPLETIONS, {**ask, "stop_token_ids": [third]}).choices
        assert ended["token_ids"] == whole["token_ids"][: whole["token_ids"].index(third) + 1]
        assert ended["stop_reason"] == third
        assert call(server, COMPLETIONS, {**ask, "min_p": 0.1}).status == 400
        wish = {"messages": CHAT, "temperature": 0, "max_tokens": 1, "logprobs": True, "top_logprobs": 3}
        (first,) = call(server, "/v1/chat/completions", wish).choices[0]["logprobs"]["content"]
        assert len({other["token"] for other in first["top_logprobs"]}) == 3
        assert first["top_logprobs"][0]["token"] == first["token"]


def test_a_draw_that_nobody_waits_for_is_stopped(tiny: Any) -> None:
    with FakeServer(LocalModel(tiny)) as server:
        ask = {"prompt": [5, 6], "n": 64, "temperature": 2.0, "max_tokens": 1000}
        with sent(server.url, COMPLETIONS, ask):
            server.records.wait(lambda records: records.active == 1)
        server.wait_idle()
        assert server.records.aborted == 1
        assert call(server, COMPLETIONS, {"prompt": [5, 6], "max_tokens": 1}).status == 200
        deadline = time.monotonic() + 60
        while tiny._engine._owners and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not tiny._engine._owners
