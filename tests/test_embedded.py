"""The sampler on the embedded models: reproducible in any company, better than plain sampling, nothing left behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch

import backends
from backends.catalog import embedded_path
from backends.local import LocalBackend
from ets_agent import ETS
from ets_agent.config import ETSConfig
from ets_agent.evaluation import evaluate, word_problems
from tests.standstill import again_after_a_standstill

SETTINGS = ETSConfig(num_candidates=8, num_rollouts=4, block_size=16, kl_coef=0.1, temperature=1.0, max_tokens=64)

SLOW: dict[str, Any] = {
    "max_tokens": 900,
    "num_candidates": 64,
    "num_rollouts": 16,
    "block_size": 4,
    "temperature": 9.0,
}
"""Nonsense that takes long to end."""


@pytest.fixture
async def qwen() -> AsyncIterator[backends.Backend]:
    torch.set_num_threads(1)
    async with backends.load("tiny/qwen3", device="cpu", dtype="float32") as backend:
        yield backend


async def test_the_same_seed_gives_the_same_text_alone_and_among_sixteen(qwen: backends.Backend) -> None:
    questions = [problem.question for problem in word_problems.problems("test", 16, seed=11)]
    ets = ETS(qwen, "self_consistency", config=SETTINGS)
    alone = [await ets.complete(question, seed=index) for index, question in enumerate(questions[:4])]
    together = await asyncio.gather(*(ets.complete(question, seed=index) for index, question in enumerate(questions)))
    for one, other in zip(alone, together, strict=False):
        assert one.text == other.text
        assert [step.candidates for step in one.steps] == [step.candidates for step in other.steps]
        assert [step.chosen for step in one.steps] == [step.chosen for step in other.steps]


async def test_guidance_beats_plain_sampling(qwen: backends.Backend) -> None:
    """A small version of the README's figures: 57 % and 81 % on 500 problems, so 60 of each are 2.9 sigma apart."""
    problems = word_problems.problems("test", 60, seed=0)
    base = await evaluate(qwen, problems, method="base", config=SETTINGS, seed=0)
    guided = await evaluate(qwen, problems, method="ets", config=SETTINGS, seed=0)
    assert base.errors == guided.errors == 0
    assert guided.accuracy >= base.accuracy + 0.10


async def test_the_reference_errs_and_agrees_with_itself_as_the_card_says(qwen: backends.Backend) -> None:
    problems = word_problems.problems("test", 120, seed=0)
    base = await evaluate(qwen, problems, method="base", config=SETTINGS, seed=1)
    majority = await evaluate(qwen, problems, method="best_of_n", n=16, config=SETTINGS, seed=1)
    assert 0.40 <= base.accuracy <= 0.75
    assert majority.accuracy >= base.accuracy + 0.15


async def test_plain_text_and_chat_messages_both_work(qwen: backends.Backend) -> None:
    problem = word_problems.problems("test", 1, seed=5)[0]
    ets = ETS(qwen, f"math_answer:gold={problem.answer}", config=SETTINGS, kl_coef=0.01, num_candidates=16)
    for prompt in (problem.question, [{"role": "user", "content": problem.question}]):
        result = await ets.complete(prompt, seed=0)
        assert (result.answer, result.reward) == (str(problem.answer), 1.0)


async def test_a_cancelled_run_leaves_nothing_in_the_engine(qwen: backends.Backend) -> None:
    assert isinstance(qwen, LocalBackend)
    ets = ETS(qwen, "self_consistency", config=SETTINGS, **SLOW)
    runs = [asyncio.create_task(ets.complete("Tell me a story.", seed=seed)) for seed in range(3)]
    async with asyncio.timeout(60):
        while len(qwen._engine._batch.rows) < 3:  # Of which each takes seconds to end.
            await asyncio.sleep(0.01)
    thread = qwen._engine._thread
    for run in runs:
        run.cancel()
    await asyncio.gather(*runs, return_exceptions=True)
    await qwen.aclose()
    assert all(run.cancelled() for run in runs)
    assert thread is not None
    assert not thread.is_alive()


@pytest.mark.usefixtures("heap_at_rest")
@again_after_a_standstill
async def test_a_deadline_is_kept_while_the_model_decodes(qwen: backends.Backend) -> None:
    ets = ETS(qwen, "self_consistency", config=SETTINGS, **SLOW)
    loop = asyncio.get_running_loop()
    await ets.complete("Hi", seed=0, max_tokens=8, num_candidates=1)
    began = loop.time()
    result = await ets.complete("Tell me a story.", seed=0, timeout=1.0)
    assert loop.time() - began < 1.25
    assert result.cut_short


def test_the_checkpoints_are_small_and_share_a_tokenizer() -> None:
    reference, small = embedded_path("tiny/qwen3"), embedded_path("tiny/qwen3-small")
    assert (reference / "tokenizer.json").read_bytes() == (small / "tokenizer.json").read_bytes()
    cards = [json.loads((folder / "card.json").read_text(encoding="utf-8")) for folder in (reference, small)]
    assert 4 * cards[1]["parameters"] <= cards[0]["parameters"]
    for info, folder in zip(backends.available(), (reference, small), strict=True):
        assert sum(path.stat().st_size for path in folder.iterdir()) < 5_000_000
        assert (folder / "README.md").is_file()
        model = backends.load(info.name)
        assert isinstance(model, LocalBackend)
        assert sum(parameter.numel() for parameter in model._model.module.parameters()) == info.parameters
