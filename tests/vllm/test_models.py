"""What vLLM says of the embedded models is what the local backend says of them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import backends
from backends import Backend, CapabilityError, Prompt, SamplingParams, State
from ets_agent import ETS
from ets_agent.config import ETSConfig
from ets_agent.evaluation import EvalReport, evaluate, wilson_interval
from ets_agent.evaluation.word_problems import problems

QUESTION = "Ada has 4 boxes with 25 cards in each. Ada gives 30 to Ben. How many cards does Ada have now?"
CHAT: Prompt = [{"role": "user", "content": QUESTION}]
NATS = 1e-3
PROBLEMS = {"ets": 100, "ets_is": 60}  # With importance weights a problem takes twice as long.


@pytest.fixture
async def local() -> AsyncIterator[Any]:
    """tiny/qwen3 on this machine."""
    async with backends.load("tiny/qwen3") as backend:
        yield backend


@pytest.fixture
async def local_small() -> AsyncIterator[Any]:
    async with backends.load("tiny/qwen3-small") as backend:
        yield backend


async def differences(served: Backend, local: Backend, prompt: Prompt, params: SamplingParams) -> list[float]:
    """Draw on the server, and return by how much its log-probabilities differ from the local model's (nats)."""
    start = await served.begin(prompt, max_tokens=48, params=params)
    twin = await local.begin(prompt, max_tokens=48, params=params)
    states = [start, *[state for state in await served.extend(start, 6, tokens=12, seed=1) if not state.finished]]
    drawn = await served.rollout(states, 4, seed=2)
    scores = await local.score(local.adopt(twin, states), drawn)
    assert all(completion.logprob is not None for group in drawn for completion in group)
    return [
        abs(completion.logprob - score)
        for group, line in zip(drawn, scores, strict=True)
        for completion, score in zip(group, line, strict=True)
        if completion.logprob is not None
    ]


@pytest.mark.parametrize("prompt", [QUESTION, CHAT], ids=["text", "chat"])
async def test_log_probabilities_of_draws_are_the_local_models(prompt: Prompt, reference: Backend, local: Any) -> None:
    found = await differences(reference, local, prompt, SamplingParams())
    print(f"\nlargest difference of {len(found)} rollouts: {max(found):.1e} nats")
    assert max(found) < NATS


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.6),
        SamplingParams(temperature=1.5),
        SamplingParams(top_p=0.9),
        SamplingParams(temperature=1.3, top_k=5),
        SamplingParams(temperature=0.8, top_p=0.95, top_k=20),
    ],
    ids=str,
)
async def test_processed_log_probabilities_are_those_of_what_is_sampled(
    params: SamplingParams, small: Backend, local_small: Any
) -> None:
    found = await differences(small, local_small, CHAT, params)
    print(f"\nlargest difference of {len(found)} rollouts: {max(found):.1e} nats")
    assert max(found) < NATS


async def test_scores_of_given_tokens_are_the_local_models(reference: Backend, local: Any, small: Backend) -> None:
    params = SamplingParams()
    start = await reference.begin(CHAT, max_tokens=48, params=params)
    twin = await local.begin(CHAT, max_tokens=48, params=params)
    draw = await small.begin(CHAT, max_tokens=48, params=params)
    drawn = await small.rollout([draw], 24, seed=3)
    (served,), (own,) = await reference.score([start], drawn), await local.score([twin], drawn)
    worst = max(abs(one - other) for one, other in zip(served, own, strict=True))
    print(f"\nlargest difference of {len(own)} scores: {worst:.1e} nats")
    assert worst < NATS


async def test_characters_that_two_requests_share_come_out_whole(reference: Backend, local: Any) -> None:
    params = SamplingParams(temperature=2.0, stop=("日x",))
    start = await reference.begin(QUESTION, max_tokens=40, params=params)
    twin = await local.begin(QUESTION, max_tokens=40, params=params)
    ids = tuple(local._tokenizer("4 ≈ 日本語 ü ", add_special_tokens=False)["input_ids"])
    for cut in range(len(ids) + 1):
        drawn = State(text="", num_tokens=cut, token_ids=ids[:cut])
        (own,) = local.adopt(twin, [drawn])
        (served,) = reference.adopt(start, [replace(drawn, text=own.text)])
        successors = await reference.extend(served, 4, tokens=3, seed=cut)
        expected = local.adopt(twin, successors)
        assert [state.text for state in successors] == [state.text for state in expected]
        for group, state in zip(await reference.rollout(successors, 2, seed=cut), successors, strict=True):
            for completion in group:
                assert completion.text.startswith(state.text)
                assert completion.text.startswith(own.text)
                assert QUESTION not in completion.text


async def test_stop_strings_are_looked_for_in_the_answer_alone(reference: Backend, local: Any) -> None:
    # After half a character, vLLM tells the question's text with the answer's, and would stop at what it finds there.
    ids = tuple(local._tokenizer("4 日", add_special_tokens=False)["input_ids"])[:-1]
    params = SamplingParams(stop=("Ada", "* "))
    start = await reference.begin(QUESTION, max_tokens=40, params=params)
    twin = await local.begin(QUESTION, max_tokens=40, params=params)
    (within,) = reference.adopt(start, [State(text="4 ", num_tokens=len(ids), token_ids=ids)])
    (rows,) = await reference.rollout([within], 16, seed=1)
    (scores,) = await local.score(local.adopt(twin, [within]), [rows])
    assert [row.logprob for row in rows] == pytest.approx(scores, abs=NATS), "tokens after a stop string do not count"
    for row in rows:
        whole = local._tokenizer.decode([*ids, *row.token_ids], skip_special_tokens=True)
        before = local._tokenizer.decode([*ids, *row.token_ids[:-1]], skip_special_tokens=True)
        assert not any(stop in before for stop in params.stop)
        assert row.text == min((whole.split(stop)[0] for stop in params.stop), key=len)
    assert any(len(row.token_ids) > 1 for row in rows)


async def test_special_tokens_are_left_out_of_adopted_texts(reference: Backend, local: Any) -> None:
    params = SamplingParams(temperature=1.0)
    start = await reference.begin(QUESTION, max_tokens=40, params=params)
    twin = await local.begin(QUESTION, max_tokens=40, params=params)
    four, day = (local._tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("4 ", "日本"))
    special = local._tokenizer.convert_tokens_to_ids("<|endoftext|>")
    for ids in ([*four, special, *day], [*four, special, *day[:-1]], [*four, special]):
        (own,) = local.adopt(twin, [State(text="", num_tokens=len(ids), token_ids=tuple(ids))])
        (rows,) = await reference.rollout(reference.adopt(start, [own]), 4, seed=1)
        for row in rows:
            assert row.text.startswith(own.text)
            assert row.text == local._tokenizer.decode([*ids, *row.token_ids], skip_special_tokens=True)


async def answers(backend: Backend, method: str, proposal: Backend | None = None) -> EvalReport:
    config = ETSConfig.build(block_size=16, max_tokens=64)
    report = await evaluate(
        backend, problems("test", PROBLEMS[method], seed=0), method=method, proposal=proposal, config=config
    )
    low, high = wilson_interval(report.correct, report.count)
    print(f"\n{report.model} {method}: {100 * report.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})")
    return report


async def test_ets_is_as_good_as_on_the_local_model(reference: Backend, local: Any) -> None:
    own, served = await answers(local, "ets"), await answers(reference, "ets")
    low, high = wilson_interval(own.correct, own.count)
    assert low <= served.accuracy <= high


async def test_ets_is_with_importance_weights_too(
    reference: Backend, small: Backend, local: Any, local_small: Any
) -> None:
    own, served = await answers(local, "ets_is", local_small), await answers(reference, "ets_is", small)
    low, high = wilson_interval(own.correct, own.count)
    assert low <= served.accuracy <= high


async def test_weights_that_would_be_wrong_are_refused_with_the_remedy(reference: Backend, small: Backend) -> None:
    with pytest.raises(CapabilityError, match=r"temperature 1 without truncation only.*proposal_temperature"):
        ETS(reference, proposal=small, temperature=0.7)
    with pytest.raises(CapabilityError, match="--logprobs-mode processed_logprobs"):
        ETS(small, proposal=reference, proposal_temperature=1.3)
    ets = ETS(reference, proposal=small, proposal_temperature=1.3, max_tokens=64, num_steps=4)
    with pytest.raises(CapabilityError, match=r"top_p 0\.9"):
        await ets.complete(CHAT, top_p=0.9)
    result = await ets.complete(CHAT, seed=1)
    assert result.usage.scoring_tokens == result.usage.rollout_tokens > 0


def running(name: str) -> float:
    """Requests that the server is working on."""
    url = name.partition("@")[2].removesuffix("/v1")
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:num_requests_running{"))


async def test_cancelling_a_run_ends_its_requests_on_the_server(reference: Backend, reference_name: str) -> None:
    # Tokens that never end: a stop string cannot come, and this model's end is drawn seldom at such a temperature.
    ets = ETS(reference, num_steps=2, num_candidates=32, num_rollouts=2, max_tokens=400, temperature=2.0)
    run = asyncio.create_task(ets.complete(QUESTION))
    while await asyncio.to_thread(running, reference_name) == 0:
        assert not run.done()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    async with asyncio.timeout(60):
        while await asyncio.to_thread(running, reference_name) > 0:
            await asyncio.sleep(0.05)


def test_the_command_line_solves_with_a_server(reference_name: str) -> None:
    command = [str(Path(sys.executable).parent / "ets"), "solve", QUESTION, "--model", reference_name]
    done = subprocess.run(
        [*command, "--max-tokens", "64", "--seed", "0", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    result = json.loads(done.stdout)
    assert result["answer"] == "70"
    assert result["model"] == reference_name
