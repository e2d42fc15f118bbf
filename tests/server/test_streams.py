"""Streams, event by event: what comes when, what goes wrong in their midst, and readers that do not read."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Sequence

import pytest

from backends import Completion, Prompt
from backends.scripted import ScriptedBackend
from ets_agent import ETSConfig, Policy
from ets_agent.guided import RewardOffer
from ets_agent.server import Limits
from rewards import Reward
from tests.server.models import BROKEN, BUG, UNREACHABLE, Failing, Gated
from tests.server.served import CHAT, LOW, Served, read_until, wait_until
from tests.virtual_time import Overdue

STEPS = {"ets": {"effort": "low", "settings": {"block_size": 2}}, "stream": True}
"""A block for every two words of the script's eight."""


def test_each_block_is_an_event(scripted: Served) -> None:
    answer = scripted.chat(seed=0, temperature=0, **STEPS)
    first, *blocks, last = answer.chunks
    assert answer.headers["cache-control"] == "no-cache"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    contents = [block["choices"][0]["delta"]["content"] for block in blocks]
    assert "".join(contents) == "12 + 30 = 42\n#### 42"
    assert len(contents) == 4
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert last["choices"][0]["ets"]["trace_id"] == answer.headers["x-ets-trace-id"]


def test_a_block_is_sent_before_the_next_one_is_drawn() -> None:
    gate = Gated(free=1)
    with Served(gate) as served, served.asked(CHAT | STEPS) as connection:
        seen = read_until(connection, b'"content":"12 +')
        assert b'"role":"assistant"' in seen
        wait_until(lambda: gate.waiting == 1)
        gate.open()
        read_until(connection, b"[DONE]")


def test_a_run_that_is_cut_short_streams_all_of_its_answer() -> None:
    with Served(Overdue({"one two three four five six": 1.0}, at=6, seconds=10)) as served:
        answer = served.complete(ets={"timeout": 9, "settings": {"block_size": 1}}, stream=True)
        *blocks, last = answer.chunks
        assert len(blocks) > 1
        assert "".join(block["choices"][0]["text"] for block in blocks) == "one two three four five six"
        assert last["choices"][0]["finish_reason"] == "length"
        assert last["choices"][0]["ets"]["finish_reason"] == "timeout"


def test_a_continuation_is_streamed_as_text(scripted: Served) -> None:
    answer = scripted.complete(seed=0, temperature=0, stream_options={"include_usage": True}, **STEPS)
    *blocks, last, bill = answer.chunks
    assert "".join(block["choices"][0]["text"] for block in blocks) == "12 + 30 = 42\n#### 42"
    assert (last["choices"][0]["text"], last["choices"][0]["finish_reason"]) == ("", "stop")
    assert bill["choices"] == []
    assert bill["usage"]["completion_tokens"] > bill["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [(UNREACHABLE, "model_error", 502), (BROKEN, "model_error", 500), (BUG, "internal_error", 500)],
)
def test_a_failure_is_told_without_details(error: Exception, code: str, status: int) -> None:
    with Served(Failing(error)) as served:
        whole = served.chat(**LOW)
        assert (whole.status, whole.error["code"], whole.error["type"]) == (status, code, "server_error")
        streamed = served.chat(**LOW, stream=True)
        assert (streamed.status, streamed.error) == (status, whole.error), (
            "nothing was sent before the model did a thing"
        )
        assert not any(secret in whole.text for secret in ("10.1.2.3", "sk-", "cuda", "bug", "line 7"))


def test_a_failure_in_mid_stream_is_the_last_event() -> None:
    with Served(Failing(UNREACHABLE, at=3)) as served:
        answer = served.chat(**STEPS)
        assert answer.status == 200
        *blocks, last = map(json.loads, answer.events)
        assert len(blocks) == 3, "the role and two blocks"
        assert last["error"]["code"] == "model_error"


def test_openais_client_raises_on_a_failure_in_mid_stream() -> None:
    import openai

    with (
        Served(Failing(UNREACHABLE, at=3)) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client,
    ):
        stream = client.chat.completions.create(
            model="scripted",
            messages=[{"role": "user", "content": "?"}],
            stream=True,
            extra_body={"ets": STEPS["ets"]},
        )
        chunks = iter(stream)
        for _ in range(3):
            next(chunks)
        with pytest.raises(openai.APIError, match="the model's server failed"):
            next(chunks)


def test_one_failing_choice_ends_the_others() -> None:
    with Served(Failing(BROKEN, at=5)) as served:
        answer = served.chat(n=3, **STEPS)
        assert json.loads(answer.events[-1])["error"]["code"] == "model_error"
        wait_until(lambda: served.reasoning.places.active == 0)


WORDS = 20
TALKATIVE = {" ".join(["x" * 500_000] * WORDS): 1.0}
"""10 MB, in words that no buffer holds many of."""


class Content(Reward):
    """Is content with everything, at once."""

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        return [1.0] * len(completions)


def talkative(limits: Limits | None = None) -> Served:
    config = ETSConfig(num_candidates=1, num_rollouts=1, num_steps=WORDS, max_tokens=WORDS + 1)
    offer = RewardOffer(name="content", reward=Content())
    policy = Policy(max_steps=WORDS + 1, max_tokens=WORDS + 1, rewards=[offer])
    return Served(ScriptedBackend(TALKATIVE), limits=limits, policy=policy, config=config)


UNREAD = {
    "model": "scripted",
    "prompt": "Talk.",
    "stream": True,
    "ets": {"settings": {"block_size": 1, "num_candidates": 1, "num_rollouts": 1}},
}


def settle(count: Callable[[], int]) -> int:
    """Return a number once it does not change any more."""
    same, last = 0, -1
    while same < 50:
        now = count()
        same, last = (same + 1, now) if now == last else (0, now)
        time.sleep(0.01)
    return last


def test_a_reader_that_stops_reading_stops_the_run() -> None:
    with talkative() as served, served.asked(UNREAD, "/v1/completions") as connection:
        backend = served.backend
        assert isinstance(backend, ScriptedBackend)
        wait_until(lambda: backend.calls > 0)
        stuck = settle(lambda: backend.calls)
        assert stuck < 1.5 * WORDS, "it did not run to its end, which takes two calls for each word"
        assert served.reasoning.places.active == 1
        read_until(connection, b"[DONE]")
        assert backend.calls > stuck


def test_a_reader_that_does_not_come_back_is_given_up() -> None:
    with (
        talkative(Limits(stall_seconds=0.2)) as served,
        served.asked(UNREAD, "/v1/completions"),
    ):
        backend = served.backend
        assert isinstance(backend, ScriptedBackend)
        wait_until(lambda: backend.calls > 0)
        wait_until(lambda: served.reasoning.places.active == 0)


def test_a_connection_that_is_reset_in_mid_stream_ends_the_run() -> None:
    with talkative() as served, served.asked(UNREAD, "/v1/completions") as connection:
        read_until(connection, b"data: ")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        wait_until(lambda: served.reasoning.places.active == 0)
