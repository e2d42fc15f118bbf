"""The local engine: exact log-probabilities, nothing computed twice, independent rows, a free event loop."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
import weakref
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

import backends
from backends import BackendError, Completion, ContextLengthError, PromptError, SamplingParams, UnknownModelError
from backends.errors import TokenizerMismatchError
from backends.local import LocalBackend
from backends.local.cache import BatchCache, Computed
from backends.local.engine import Engine
from backends.local.model import Model

QUESTION = "Will has 41 tickets. Ada gives Will another 72. How many tickets does Will have now?"
OTHER = "Mia has 9 boxes with 12 eggs in each. Mia loses 30 of them. How many eggs does Mia have now?"
PLAIN = SamplingParams()


class Passes(list[int]):
    """Rows of each forward pass."""

    stop_at = 0
    """At this pass the model waits until it is let go on, so that what a test does meanwhile is certainly in time."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    async def stopped(self) -> None:
        async with asyncio.timeout(60):
            while len(self) < self.stop_at:
                await asyncio.sleep(0.001)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    seen = Passes()
    forward = Model._forward

    def counted(self: Model, **inputs: Any) -> Any:
        seen.append(len(inputs["input_ids"]))
        if len(seen) == seen.stop_at:
            assert seen.go_on.wait(60)
        return forward(self, **inputs)

    monkeypatch.setattr(Model, "_forward", counted)
    return seen


def reference_logprob(
    model: PreTrainedModel, prompt: list[int], drawn: tuple[int, ...], params: SamplingParams
) -> float:
    """Log-probability by the book: one pass over the whole sequence, no cache, float64 softmax."""
    ids = torch.tensor([[*prompt, *drawn]])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    logits = logits / params.temperature
    total = 0.0
    for line, token in zip(logits, drawn, strict=True):
        order = line.argsort(descending=True)
        kept = order[: params.top_k] if params.top_k else order
        probabilities = line[kept].softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        inside = kept[before < params.top_p] if params.top_p < 1 else kept
        place = (inside == token).nonzero()
        assert len(place) == 1, "a truncated token was drawn"
        total += float(line[inside].log_softmax(-1)[place[0, 0]])
    return total


def tiny_models() -> Iterator[PreTrainedModel]:
    torch.manual_seed(0)
    shape = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
    more = {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 8}
    yield LlamaForCausalLM(LlamaConfig(**shape, **more))
    yield MistralForCausalLM(MistralConfig(**shape, **more, sliding_window=6))
    yield Gemma2ForCausalLM(Gemma2Config(**shape, **more, sliding_window=6, query_pre_attn_scalar=8))
    yield GPT2LMHeadModel(GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4, n_positions=256))


@pytest.mark.parametrize("model", list(tiny_models()), ids=lambda model: type(model).__name__)
async def test_any_architecture_gives_exact_log_probabilities(model: PreTrainedModel, tiny_parts: Any) -> None:
    model.eval()
    with torch.no_grad():  # Random weights give flat distributions, in which an error of position would hide.
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    tokenizer = tiny_parts[1]
    async with LocalBackend(model, tokenizer, name="random") as backend:
        params = SamplingParams(temperature=0.8)
        starts = [await backend.begin(text, max_tokens=20, params=params) for text in (QUESTION, OTHER * 2)]
        blocks = await asyncio.gather(
            *(backend.extend(start, 3, tokens=5 + i, seed=i) for i, start in enumerate(starts))
        )
        for text, states in zip((QUESTION, OTHER * 2), blocks, strict=True):
            drawn = await backend.rollout(states, 2, seed=9)
            scored = await backend.score(states, drawn)
            for state, completions, scores in zip(states, drawn, scored, strict=True):
                prompt = [*tokenizer(text)["input_ids"], *state.token_ids]  # type: ignore[attr-defined]
                for completion, score in zip(completions, scores, strict=True):
                    expected = reference_logprob(model, prompt, completion.token_ids, params)
                    assert completion.logprob == pytest.approx(expected, abs=2e-3)
                    assert score == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    "params",
    [PLAIN, SamplingParams(temperature=0.6), SamplingParams(temperature=1.4, top_p=0.9), SamplingParams(top_k=4)],
    ids=["plain", "cold", "nucleus", "top-k"],
)
async def test_log_probabilities_are_those_of_the_sampled_distribution(
    tiny: LocalBackend, tiny_parts: Any, params: SamplingParams
) -> None:
    model, tokenizer = tiny_parts
    start = await tiny.begin(QUESTION, max_tokens=24, params=params)
    ((*completions,),) = await tiny.rollout([start], 8, seed=1)
    for completion in completions:
        expected = reference_logprob(model, tokenizer(QUESTION)["input_ids"], completion.token_ids, params)
        assert completion.logprob == pytest.approx(expected, abs=1e-3)


async def test_draws_follow_the_distribution(tiny: LocalBackend, tiny_parts: Any) -> None:
    model, tokenizer = tiny_parts
    params = SamplingParams(temperature=2.5, top_k=6)
    prompt = QUESTION + "\n"
    start = await tiny.begin(prompt, max_tokens=1, params=params)
    count = 20_000
    drawn = (await tiny.rollout([start], count, seed=3))[0]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1].double()
    top = (logits / 2.5).topk(6)
    probabilities = dict(zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True))
    counts = {token: sum(c.token_ids == (token,) for c in drawn) for token in probabilities}
    assert sum(counts.values()) == count
    chi_squared = sum((counts[t] - count * p) ** 2 / (count * p) for t, p in probabilities.items())
    assert chi_squared < 20.5  # 5 degrees of freedom: exceeded once in a thousand seeds.


async def test_no_token_is_computed_twice(tiny: LocalBackend, tiny_parts: Any) -> None:
    prompt = len(tiny_parts[1](QUESTION)["input_ids"])
    model = tiny._model
    before = model.forward_tokens
    start = await tiny.begin(QUESTION, max_tokens=24, params=PLAIN)
    candidates = await tiny.extend(start, 5, tokens=6, seed=0)
    alive = [state for state in candidates if not state.finished]
    ended = sum(state.num_tokens - 1 for state in candidates if state.finished)
    assert model.forward_tokens - before == prompt + 6 * len(alive) + ended
    before = model.forward_tokens
    rollouts = await tiny.rollout(alive, 3, seed=1)
    # A rollout's last token is drawn and never fed, and its first comes from the candidate's kept logits.
    assert model.forward_tokens - before == sum(len(c.token_ids) - 1 for group in rollouts for c in group)
    before = model.forward_tokens
    further = await tiny.extend(alive[0], 4, tokens=2, seed=2)
    assert model.forward_tokens - before == sum(state.num_tokens - 6 - state.finished for state in further)
    before = model.forward_tokens
    await tiny.score(alive[:1], [rollouts[0]])
    assert model.forward_tokens - before == sum(len(c.token_ids) - 1 for c in rollouts[0])


async def test_finished_rows_leave_the_batch(tiny: LocalBackend, passes: Passes) -> None:
    start = await tiny.begin(QUESTION, max_tokens=60, params=SamplingParams(temperature=1.3))
    ((*completions,),) = await tiny.rollout([start], 16, seed=5)
    lengths = [len(completion.token_ids) for completion in completions]
    assert len(set(lengths)) > 3
    decoding = passes[1:]
    assert decoding == [sum(length > step for length in lengths) for step in range(1, max(lengths))]


async def test_concurrent_calls_share_batches(tiny: LocalBackend, passes: Passes) -> None:
    starts = [await tiny.begin(text, max_tokens=20, params=PLAIN) for text in (QUESTION, OTHER, QUESTION + " " + OTHER)]
    calls = [asyncio.create_task(tiny.extend(start, 4, tokens=10, seed=i)) for i, start in enumerate(starts)]
    with tiny._engine._changed:  # The thread gets none of them before all are there.
        while len(tiny._engine._inbox) < 3:
            await asyncio.sleep(0)
    await asyncio.gather(*calls)
    assert max(passes) == 12
    assert len(passes) < 3 * 11


async def test_rows_do_not_depend_on_their_company(tiny: LocalBackend) -> None:
    texts = [QUESTION, OTHER, QUESTION + " " + OTHER, OTHER + " " + QUESTION]
    kinds = [
        PLAIN,
        SamplingParams(temperature=0.5),
        SamplingParams(top_p=0.9),
        SamplingParams(temperature=1.5, top_k=9),
    ]

    async def solve(index: int) -> list[Completion]:
        start = await tiny.begin(texts[index], max_tokens=30, params=kinds[index])
        states = await tiny.extend(start, 3, tokens=8, seed=index)
        await asyncio.sleep(0.003 * index)  # Join the others in the middle of their work.
        return [completion for group in await tiny.rollout(states, 2, seed=index) for completion in group]

    alone = [await solve(index) for index in range(4)]
    together = await asyncio.gather(*(solve(index) for index in range(4)))
    for one, other in zip(alone, together, strict=True):
        assert [c.token_ids for c in one] == [c.token_ids for c in other]
        assert [c.logprob for c in one] == pytest.approx([c.logprob for c in other], abs=1e-4)


@pytest.mark.usefixtures("heap_at_rest")
async def test_the_event_loop_stays_free(tiny: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on during each pass of the model, and what is done in it takes little of the processor at once."""
    start = await tiny.begin(QUESTION * 3, max_tokens=60, params=PLAIN)
    forward, loop, passes, work = Model._forward, asyncio.get_running_loop(), 0, list[float]()

    def watched(self: Model, **inputs: Any) -> Any:
        nonlocal passes
        goes_on = threading.Event()
        loop.call_soon_threadsafe(goes_on.set)
        assert goes_on.wait(60), "it waits for the model"
        passes += 1
        return forward(self, **inputs)

    async def heartbeat() -> None:
        while True:
            before = time.thread_time()  # Of the processor: the machine may be busy with something else.
            await asyncio.sleep(0.001)
            work.append(time.thread_time() - before)

    monkeypatch.setattr(Model, "_forward", watched)
    heart = asyncio.create_task(heartbeat())
    await asyncio.gather(*(tiny.rollout([start], 16, seed=seed) for seed in range(6)))
    heart.cancel()
    assert passes > 10
    assert max(work) < 0.1


async def test_memory_pressure_splits_batches_and_changes_nothing(
    tiny: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = await tiny.begin(QUESTION, max_tokens=30, params=PLAIN)
    states = await tiny.extend(start, 4, tokens=5, seed=1)
    expected = await tiny.rollout(states, 4, seed=2)
    scores = await tiny.score(states, expected)
    forward, widest = Model._forward, 0

    def scarce(self: Model, **inputs: Any) -> Any:
        nonlocal widest
        if len(inputs["input_ids"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        widest = max(widest, len(inputs["input_ids"]))
        return forward(self, **inputs)

    monkeypatch.setattr(Model, "_forward", scarce)
    again = await tiny.extend(start, 4, tokens=5, seed=1)
    assert again == states
    rolled = await tiny.rollout(again, 4, seed=2)
    assert [[c.token_ids for c in group] for group in rolled] == [[c.token_ids for c in group] for group in expected]
    rescored = await tiny.score(again, rolled)
    assert [pytest.approx(line, abs=1e-3) for line in scores] == rescored
    assert widest <= 3
    assert tiny._engine.row_limit <= 3


async def test_memory_that_runs_out_midway_loses_no_token(tiny: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    start = await tiny.begin(QUESTION, max_tokens=40, params=SamplingParams(stop=("\n8",)))
    expected = await tiny.rollout([start], 6, seed=2)
    forward, calls = Model._forward, 0

    def scarce(self: Model, **inputs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 7 == 0 and len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, **inputs)

    monkeypatch.setattr(Model, "_forward", scarce)
    fresh = await tiny.begin(QUESTION, max_tokens=40, params=SamplingParams(stop=("\n8",)))
    rolled = await tiny.rollout([fresh], 6, seed=2)
    assert [(c.token_ids, c.text) for c in rolled[0]] == [(c.token_ids, c.text) for c in expected[0]]


async def test_one_row_that_does_not_fit_is_a_clear_error(tiny: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Model, **inputs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    start = await tiny.begin(QUESTION, max_tokens=8, params=PLAIN)
    with monkeypatch.context() as patched:
        patched.setattr(Model, "_forward", full)
        with pytest.raises(BackendError, match="not enough memory"):
            await tiny.rollout([start], 4, seed=0)
        with pytest.raises(BackendError, match="not enough memory"):
            await tiny.score([start], [[Completion(text="", token_ids=(1, 2))]])
    assert len((await tiny.rollout([start], 4, seed=0))[0]) == 4, "the backend works on once there is memory"


async def test_a_failing_pass_fails_the_calls_in_it_and_no_others(
    tiny: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = await tiny.begin(QUESTION, max_tokens=8, params=PLAIN)
    with monkeypatch.context() as patched:
        patched.setattr(Model, "_forward", lambda self, **inputs: 1 / 0)
        with pytest.raises(BackendError, match="the model failed: ZeroDivisionError"):
            await tiny.extend(start, 2, tokens=4, seed=0)
    assert len(await tiny.extend(start, 2, tokens=4, seed=0)) == 2


async def test_a_failure_while_cancelled_rows_leave_hangs_nobody(
    tiny: LocalBackend, monkeypatch: pytest.MonkeyPatch, passes: Passes
) -> None:
    start = await tiny.begin(QUESTION, max_tokens=300, params=SamplingParams(temperature=5.0))
    passes.stop_at = 5
    doomed = asyncio.create_task(tiny.rollout([start], 4, seed=0))
    other = asyncio.create_task(tiny.rollout([start], 4, seed=1))
    await passes.stopped()
    move, failed = BatchCache.move, threading.Event()

    def scarce(self: BatchCache, *arguments: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise torch.OutOfMemoryError("CUDA out of memory")
        move(self, *arguments)

    monkeypatch.setattr(BatchCache, "move", scarce)
    doomed.cancel()
    await asyncio.wait([doomed])
    passes.go_on.set()
    assert len((await asyncio.wait_for(other, 60))[0]) == 4
    assert failed.is_set()


async def test_a_thread_that_dies_fails_its_calls_and_is_replaced(
    tiny: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    start = await tiny.begin(QUESTION, max_tokens=8, params=PLAIN)
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "_turn", lambda self: 1 / 0)
        with pytest.raises(BackendError, match="thread failed: ZeroDivisionError"):
            await asyncio.wait_for(tiny.rollout([start], 2, seed=0), 60)
    assert len((await tiny.rollout([start], 2, seed=0))[0]) == 2


async def test_a_thread_that_cannot_start_is_a_clear_error(tiny: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    start = await tiny.begin(QUESTION, max_tokens=8, params=PLAIN)
    engine_thread = threading.Thread.start
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(BackendError, match="can't start new thread"):
            await tiny.rollout([start], 2, seed=0)
    assert threading.Thread.start is engine_thread
    assert len((await tiny.rollout([start], 2, seed=0))[0]) == 2


async def test_calls_that_meet_the_thread_at_its_end_are_served(
    tiny: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.local.engine._IDLE_SECONDS", 0.001)
    start = await tiny.begin(QUESTION, max_tokens=2, params=PLAIN)
    for seed in range(150):
        await tiny.rollout([start], 1, seed=seed)
        await asyncio.sleep(0.0008 + 0.0004 * (seed % 3))


async def test_a_kept_candidate_does_not_keep_its_siblings_caches(tiny: LocalBackend) -> None:
    start = await tiny.begin(QUESTION, max_tokens=40, params=PLAIN)
    states = await tiny.extend(start, 8, tokens=8, seed=0)
    computed = next(state for state in states if not state.finished).prefix.computed  # type: ignore[attr-defined]
    for tensor in (*computed.keys, *computed.values, computed.logits):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


async def test_completions_of_a_model_that_ends_otherwise_are_not_scored(tiny: LocalBackend) -> None:
    assert tiny.tokenization is not None
    assert tiny.tokenization.end_ids
    start = await tiny.begin(QUESTION, max_tokens=8, params=PLAIN)
    end = min(tiny.tokenization.end_ids)
    endings: list[tuple[Any, tuple[int, ...]]] = [("stop", (5, end, 5, end)), ("length", (5, 5, end))]
    for reason, ids in endings:
        past = Completion(text="", token_ids=ids, finish_reason=reason)
        with pytest.raises(TokenizerMismatchError, match=f"goes on after token {end}, which ends responses"):
            await tiny.score([start], [[past]])
    sooner = Completion(text="", token_ids=(5, 5), finish_reason="stop")
    with pytest.raises(TokenizerMismatchError, match="ends responses with token 5, which ends none of"):
        await tiny.score([start], [[sooner]])
    stopped = await tiny.begin(QUESTION, max_tokens=8, params=SamplingParams(stop=("never",)))
    ((score,),) = await tiny.score([stopped], [[sooner]])
    assert math.isfinite(score)


async def test_scores_are_split_when_prefixes_do_not_fit(tiny: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [QUESTION + " " + "And?" * count for count in range(6)]
    starts = [await tiny.begin(text, max_tokens=8, params=PLAIN) for text in texts]
    drawn = await tiny.rollout(starts, 1, seed=0)
    expected = await tiny.score(starts, drawn)
    forward = Model._forward

    def scarce(self: Model, **inputs: Any) -> Any:
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, **inputs)

    monkeypatch.setattr(Model, "_forward", scarce)
    fresh = [await tiny.begin(text, max_tokens=8, params=PLAIN) for text in texts]
    assert [pytest.approx(line, abs=1e-3) for line in expected] == await tiny.score(fresh, drawn)


@pytest.mark.parametrize("temperature", [1e-6, 1e-39, 1e-46, 1e-320])
async def test_tiny_temperatures_are_greedy(tiny: LocalBackend, temperature: float) -> None:
    greedy = await tiny.begin(QUESTION, max_tokens=12, params=SamplingParams(temperature=0))
    cold = await tiny.begin(QUESTION, max_tokens=12, params=SamplingParams(temperature=temperature, top_k=10**30))
    ((expected,),) = await tiny.rollout([greedy], 1, seed=0)
    ((completion,),) = await tiny.rollout([cold], 1, seed=1)
    assert completion.token_ids == expected.token_ids
    assert completion.logprob == pytest.approx(0, abs=1e-6)


async def test_logits_that_are_no_numbers_are_a_clear_error(
    tiny: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Model._forward

    def broken(self: Model, **inputs: Any) -> Any:
        output = forward(self, **inputs)
        output.logits.fill_(math.nan)
        return output

    start = await tiny.begin(QUESTION, max_tokens=8, params=PLAIN)
    monkeypatch.setattr(Model, "_forward", broken)
    with pytest.raises(BackendError, match="not numbers"):
        await tiny.rollout([start], 2, seed=0)


async def test_impossible_requests_are_refused(tiny: LocalBackend) -> None:
    start = await tiny.begin(QUESTION, max_tokens=8, params=PLAIN)
    with pytest.raises(BackendError, match="at least one"):
        await tiny.rollout([start], 0, seed=0)
    with pytest.raises(BackendError, match="at least one"):
        await tiny.extend(start, 0, tokens=1, seed=0)
    assert await tiny.rollout([], 3, seed=0) == []
    assert await tiny.score([], []) == []
    with pytest.raises(PromptError, match="half of a surrogate pair"):
        await tiny.begin("\ud800 hi", max_tokens=4, params=PLAIN)


async def test_closing_frees_the_weights(tiny_parts: Any) -> None:
    backend = LocalBackend(*tiny_parts, name="x")
    await backend.aclose()
    await backend.aclose()
    assert not hasattr(backend._model, "module")
    with pytest.raises(backends.BackendClosedError):
        await backend.begin(QUESTION, max_tokens=4, params=PLAIN)


async def test_cancelled_calls_stop_decoding(tiny: LocalBackend, passes: Passes) -> None:
    start = await tiny.begin(QUESTION, max_tokens=900, params=SamplingParams(temperature=3.0))
    passes.stop_at = 5
    call = asyncio.create_task(tiny.rollout([start], 4, seed=0))
    await passes.stopped()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    passes.go_on.set()
    other = await tiny.begin(OTHER, max_tokens=4, params=PLAIN)
    await tiny.rollout([other], 1, seed=0)
    assert passes[-1] == 1, "the cancelled rows have left"
    assert not tiny._engine._owners
    assert not tiny._engine._batch.rows


async def test_closing_fails_what_is_under_way_and_ends_the_thread(tiny: LocalBackend, passes: Passes) -> None:
    start = await tiny.begin(QUESTION, max_tokens=900, params=SamplingParams(temperature=3.0))
    passes.stop_at = 3
    call = asyncio.create_task(tiny.rollout([start], 4, seed=0))
    await passes.stopped()
    thread = tiny._engine._thread
    closing = asyncio.create_task(tiny.aclose())
    while not tiny._engine._closed:
        await asyncio.sleep(0.001)
    passes.go_on.set()
    await closing
    with pytest.raises(backends.BackendClosedError):
        await call
    assert thread is not None
    assert not thread.is_alive()


async def test_an_idle_engine_has_no_thread(tiny: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.local.engine._IDLE_SECONDS", 60)
    start = await tiny.begin(QUESTION, max_tokens=4, params=PLAIN)
    await tiny.extend(start, 1, tokens=2, seed=0)
    thread = tiny._engine._thread
    assert thread is not None
    monkeypatch.setattr("backends.local.engine._IDLE_SECONDS", 0.01)
    await tiny.extend(start, 1, tokens=2, seed=0)  # After this, it waits for so long only.
    await asyncio.to_thread(thread.join, 30)
    assert not thread.is_alive()
    await tiny.extend(start, 1, tokens=2, seed=0)


async def test_caches_live_as_long_as_their_states(tiny: LocalBackend) -> None:
    start = await tiny.begin(QUESTION, max_tokens=30, params=PLAIN)
    states = await tiny.extend(start, 4, tokens=8, seed=0)
    await tiny.rollout(states, 2, seed=0)
    kept = [weakref.ref(state.prefix.computed.keys[0]) for state in [start, *states]]  # type: ignore[attr-defined]
    first, *others = kept
    del states
    deadline = time.monotonic() + 20
    while any(other() is not None for other in others):  # The thread may not have let go of its last rows yet.
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)
        gc.collect()
    assert first() is not None


async def test_chat_messages_are_rendered_with_the_template(tiny: LocalBackend, tiny_parts: Any) -> None:
    tokenizer = tiny_parts[1]
    messages = [{"role": "user", "content": "Hi"}]
    state = await tiny.begin(messages, max_tokens=4, params=PLAIN)
    expected = tokenizer("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    assert list(state.prompt_ids) == expected  # type: ignore[attr-defined]
    bare = LocalBackend(tiny_parts[0], _without_template(tokenizer), name="bare")
    assert not bare.capabilities.chat
    with pytest.raises(PromptError, match="no chat template"):
        await bare.begin(messages, max_tokens=4, params=PLAIN)


async def test_text_grows_character_by_character(tiny: LocalBackend) -> None:
    snowman = tiny._tokenizer("☃é☃")["input_ids"]
    texts = [tiny._decoder.text(snowman[:count], (), finished=False) for count in range(1, len(snowman) + 1)]
    assert texts[-1] == "☃é☃"
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert not any("\N{REPLACEMENT CHARACTER}" in text for text in texts)


async def test_a_prompt_beyond_the_context_is_refused(tiny: LocalBackend) -> None:
    with pytest.raises(ContextLengthError, match="allows 1024 together"):
        await tiny.begin(QUESTION, max_tokens=1020, params=PLAIN)
    with pytest.raises(ContextLengthError):
        await tiny.begin("☃" * 100_000, max_tokens=1, params=PLAIN)


async def test_states_of_another_backend_are_refused(tiny: LocalBackend) -> None:
    with pytest.raises(BackendError, match="another backend"):
        await tiny.extend(backends.State(), 1, tokens=1, seed=0)


def test_what_cannot_be_loaded_says_why(tmp_path: Path, tiny_parts: Any) -> None:
    with pytest.raises(UnknownModelError, match="cannot load a model"):
        backends.load("hf/no-such-organisation/no-such-model")
    with pytest.raises(UnknownModelError):
        backends.load(f"hf/{tmp_path}")
    with pytest.raises(UnknownModelError, match="did you mean 'tiny/qwen3'"):
        backends.load("tiny/qwen")
    with pytest.raises(BackendError, match="device is 'toaster'; allowed"):
        backends.load("tiny/qwen3-small", device="toaster")
    with pytest.raises(BackendError, match="dtype is 'int8'; allowed"):
        backends.load("tiny/qwen3-small", dtype="int8")
    with pytest.raises(BackendError, match="max_rows is 0; allowed"):
        backends.load("tiny/qwen3-small", max_rows=0)
    with pytest.raises(BackendError, match="takes no option 'devise'; allowed: device"):
        backends.load("tiny/qwen3-small", devise="cpu")
    with pytest.raises(UnknownModelError, match="given by name"):
        backends.load(5)  # type: ignore[arg-type]
    folder = tmp_path / "damaged"
    tiny_parts[0].save_pretrained(folder)
    tiny_parts[1].save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(BackendError, match="cannot load"):
        backends.load(f"hf/{folder}")


def test_models_with_recurrent_state_are_refused(tmp_path: Path, tiny_parts: Any) -> None:
    config = MambaConfig(vocab_size=512, hidden_size=16, state_size=4, num_hidden_layers=1)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    tiny_parts[1].save_pretrained(tmp_path)
    with pytest.raises(BackendError, match="cannot be shared between continuations"):
        backends.load(f"hf/{tmp_path}")


def test_greedy_has_probability_one() -> None:
    from backends.local.sampling import SampledDistribution

    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [1.0, 3.0, 2.0, 0.0]])
    greedy = SampledDistribution([SamplingParams(temperature=0), PLAIN], logits.device).log_probabilities(logits)
    assert greedy[0].tolist() == [-math.inf, 0.0, -math.inf, -math.inf]
    assert greedy[1].exp().sum() == pytest.approx(1)


def test_impossible_tokens_are_never_drawn() -> None:
    from backends.local.sampling import draw

    log_probabilities = torch.tensor([[-math.inf, 0.0, -math.inf]]).expand(3, 3)
    for edge in (0.0, 1 - 2**-53, 0.5):
        assert draw(log_probabilities, torch.full((3,), edge, dtype=torch.float64)).tolist() == [1, 1, 1]


def _without_template(tokenizer: Any) -> Any:
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    return bare


def test_buffers_are_freed_with_the_last_who_uses_them_and_not_by_the_garbage_collector() -> None:
    layer = torch.zeros(2, 3, 4)
    batch = BatchCache(Computed([layer], [layer], torch.zeros(5)), rows=2, length=8)
    keys = weakref.ref(batch.buffers[0].keys)
    gc.disable()
    try:
        del batch
        assert keys() is None
    finally:
        gc.enable()
