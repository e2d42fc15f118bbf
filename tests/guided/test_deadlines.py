"""Time limits, token budgets and cancelled calls of `GuidedReasoning`: an answer in time, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import backends
from backends import Completion, Prompt
from backends.scripted import ScriptedBackend
from ets_agent import ETS, GuidedAnswer, GuidedReasoning, Policy, RewardOffer
from ets_agent.results import Event
from rewards import Reward
from rewards.functions import FunctionReward
from rewards.sandbox import SandboxUnavailableError, select
from tests.fake_server import FakeServer, FaultPlan, ScriptedModel
from tests.standstill import again_after_a_standstill

RESPONSES = {
    "12 + 4 = 16\n16 * 2 = 32\n#### 32": 3.0,
    "12 + 4 = 18\n18 * 2 = 36\n#### 36": 1.0,
    "12 - 4 = 8\n8 * 2 = 16\n#### 16": 1.0,
}
QUESTION = "Ada has 12 apples and finds 4 more. Ben has twice as many. How many has Ben?"
STEPS: dict[str, Any] = {"max_tokens": 12, "settings": {"num_candidates": 4, "num_rollouts": 2, "num_steps": 4}}
"""Four steps of three words, each of which takes two calls of the model."""
TRIES = 3
"""How often lateness is measured; the best counts, because the machine may be busy with something else."""


def tolerance(limit: float) -> float:
    """Return how many seconds before or after its time limit an answer may come."""
    return max(0.1 * limit, 0.25)


async def ask_in_time(reasoning: GuidedReasoning, limit: float, **fields: Any) -> GuidedAnswer:
    """Ask with a time limit that is too short, and check that the answer comes when it is over, and what is left."""
    late = []
    for _ in range(TRIES):
        async with nothing_left(reasoning):
            began = time.monotonic()
            answer = await reasoning(question=QUESTION, timeout=limit, **fields)
            late.append(time.monotonic() - began - limit)
        assert answer.usage.seconds <= limit + late[-1]
        if abs(late[-1]) <= tolerance(limit):  # If the machine stood still, work may have ended before that was told.
            assert (answer.finish_reason, answer.cut_short) == ("timeout", True)
            return answer
    raise AssertionError(f"late by {late} s of {limit} s")


@contextlib.asynccontextmanager
async def nothing_left(reasoning: GuidedReasoning) -> AsyncIterator[None]:
    """Check that no task, no call of the model and no place is left of what ran meanwhile."""
    before = asyncio.all_tasks()
    yield
    assert not {task for task in asyncio.all_tasks() - before if not task.done()}
    assert getattr(reasoning.backend, "active", 0) == 0
    assert (reasoning.places.active, reasoning.places.waiting) == (0, 0)


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.005)


# The time limit


@again_after_a_standstill
async def test_half_a_minutes_work_is_answered_within_its_five_seconds() -> None:
    async with GuidedReasoning(ScriptedBackend(RESPONSES, delay=30 / 8)) as reasoning:
        answer = await ask_in_time(reasoning, 5, **STEPS)
    assert answer.text in RESPONSES  # A plain draw: in the first step nothing was weighed yet.


@again_after_a_standstill
async def test_in_the_first_step_the_answer_is_a_plain_draw() -> None:
    async with GuidedReasoning(ScriptedBackend(RESPONSES, delay=0.6)) as reasoning:
        answer = await ask_in_time(reasoning, 1, **STEPS)
    assert answer.text in RESPONSES
    assert answer.answer == answer.text.rpartition(" ")[2]
    assert (answer.confidence, answer.reward) == (None, None)
    assert answer.warnings == ("it was cut short before anything was weighed; this is a plain draw of the model",)


async def test_before_anything_is_drawn_the_answer_is_empty() -> None:
    async with GuidedReasoning(ScriptedBackend(RESPONSES, delay=300)) as reasoning:
        answer = await ask_in_time(reasoning, 0.5, **STEPS)
    assert (answer.text, answer.answer, answer.confidence) == ("", None, None)


@again_after_a_standstill
async def test_between_steps_the_answer_is_the_best_one_so_far() -> None:
    committed: list[str] = []

    def hear(event: Event) -> None:
        if event.type == "block_committed":
            committed.append(event.text)

    async with GuidedReasoning(ScriptedBackend(RESPONSES, delay=0.2)) as reasoning:
        answer = await ask_in_time(reasoning, 1, on_event=hear, **STEPS)
    assert answer.text in RESPONSES
    assert answer.text.startswith(committed[-1])
    assert answer.answer is not None
    assert answer.confidence is not None


@again_after_a_standstill
async def test_while_it_waits_for_a_place_the_answer_is_empty_and_says_why() -> None:
    backend = ScriptedBackend(RESPONSES, delay=300)
    async with GuidedReasoning(backend, max_concurrency=1) as reasoning:
        first = asyncio.create_task(reasoning(QUESTION))
        await until(lambda: backend.active)
        began = time.monotonic()
        answer = await reasoning(question=QUESTION, timeout=0.5)
        late = time.monotonic() - began - 0.5
        assert reasoning.places.waiting == 0
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    assert abs(late) <= tolerance(0.5)
    assert (answer.text, answer.answer, answer.finish_reason) == ("", None, "timeout")
    assert answer.warnings == ("all places were taken until the time was over",)


@again_after_a_standstill
async def test_the_time_in_the_line_counts() -> None:
    backend = ScriptedBackend(RESPONSES, delay=0.4)
    async with GuidedReasoning(backend, max_concurrency=1) as reasoning:
        began = time.monotonic()
        first, second = await asyncio.gather(
            reasoning(question=QUESTION, timeout=0.6, **STEPS), reasoning(question=QUESTION, timeout=1.1, **STEPS)
        )
        assert abs(time.monotonic() - began - 1.1) <= tolerance(1.1)
    assert [answer.finish_reason for answer in (first, second)] == ["timeout", "timeout"]
    assert second.text in RESPONSES  # A plain draw in the half second that was left.


@again_after_a_standstill
async def test_without_a_limit_of_its_own_a_request_has_the_operators() -> None:
    backend = ScriptedBackend(RESPONSES, delay=300)
    async with GuidedReasoning(backend, policy=Policy(max_seconds=0.5)) as reasoning, nothing_left(reasoning):
        began = time.monotonic()
        answer = await reasoning(QUESTION)
        assert abs(time.monotonic() - began - 0.5) <= tolerance(0.5)
    assert answer.finish_reason == "timeout"


async def test_a_trace_is_whole_although_its_run_was_cut_short(tmp_path: Path) -> None:
    async with GuidedReasoning(ScriptedBackend(RESPONSES, delay=0.2), traces=tmp_path) as reasoning:
        answer = await ask_in_time(reasoning, 1, **STEPS)
    lines = (tmp_path / f"{answer.trace_id}.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[-1])["type"] == "finished"


# Slow judges


class Slow(Reward):
    """Judges by length; a judgement takes long, and so does closing."""

    def __init__(self, *, judging: float = 0.0, closing: float = 0.0) -> None:
        self._judging, self._closing = judging, closing
        self.closed = False

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        await asyncio.sleep(self._judging)
        return [float(len(completion.text)) for completion in completions]

    async def aclose(self) -> None:
        await asyncio.sleep(self._closing)
        self.closed = True


def clinging(made: list[Slow]) -> type[Slow]:
    """Return a judge that is made for each run and closed after it, which takes a second."""

    class Clinging(Slow):
        def __init__(self) -> None:
            super().__init__(closing=1)
            made.append(self)

    return Clinging


def offering(reward: Any) -> Policy:
    return Policy(rewards=[RewardOffer(name="mine", reward=reward)])


@again_after_a_standstill
async def test_a_slow_judge_is_not_waited_for() -> None:
    policy = offering(Slow(judging=30))
    async with GuidedReasoning(ScriptedBackend(RESPONSES), policy=policy) as reasoning:
        answer = await ask_in_time(reasoning, 0.5, **STEPS)
    assert answer.text in RESPONSES
    assert answer.confidence is None


@again_after_a_standstill
async def test_a_judge_that_is_slow_from_the_second_step_on_leaves_the_first_ones_best() -> None:
    class Tiring(Slow):
        async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
            scores = await super().score(prompt, completions)
            self._judging = 30
            return scores

    for limit in (0.5, 1.0):
        policy = offering(Tiring())
        async with GuidedReasoning(ScriptedBackend(RESPONSES), policy=policy) as reasoning:
            began = time.monotonic()
            answer = await reasoning(question=QUESTION, timeout=limit, **STEPS)
            assert abs(time.monotonic() - began - limit) <= tolerance(limit)
        assert answer.cut_short
        assert answer.text in RESPONSES
        assert answer.reward == len(answer.text)


@again_after_a_standstill
async def test_a_judge_that_is_slow_to_close_is_not_waited_for_until_the_tool_closes() -> None:
    made: list[Slow] = []
    policy = offering(clinging(made))
    async with GuidedReasoning(ScriptedBackend(RESPONSES, delay=0.2), policy=policy) as reasoning:
        began = time.monotonic()
        cut = await reasoning(question=QUESTION, timeout=0.5, **STEPS)
        assert abs(time.monotonic() - began - 0.5) <= tolerance(0.5)
        whole = await reasoning(question=QUESTION, timeout=60, **STEPS)
        assert (cut.cut_short, whole.cut_short) == (True, False)
        assert not made[1].closed
    assert [judge.closed for judge in made] == [True, True]


@again_after_a_standstill
async def test_the_sampler_does_not_wait_for_such_a_judge_either() -> None:
    made: list[Slow] = []
    async with ETS(ScriptedBackend(RESPONSES, delay=0.2), max_tokens=12) as ets:
        began = time.monotonic()
        result = await ets.complete(QUESTION, reward=clinging(made), timeout=0.5)
        assert abs(time.monotonic() - began - 0.5) <= tolerance(0.5)
        assert (result.cut_short, made[0].closed) == (True, False)
    assert made[0].closed


def test_without_an_event_loop_such_a_judge_is_closed_before_the_answer_comes() -> None:
    made: list[Slow] = []
    result = ETS(ScriptedBackend(RESPONSES), max_tokens=12).complete_sync(QUESTION, reward=clinging(made))
    assert result.text in RESPONSES
    assert made[0].closed


async def test_a_judge_that_fails_to_close_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(Slow):
        async def aclose(self) -> None:
            raise RuntimeError("it does not let go")

    async with GuidedReasoning(ScriptedBackend(RESPONSES), policy=offering(Stuck)) as reasoning:
        assert (await reasoning(question=QUESTION, **STEPS)).text in RESPONSES
    assert "it does not let go" in caplog.text


@again_after_a_standstill
async def test_a_judge_in_a_thread_that_nothing_can_stop_is_left_behind() -> None:
    released = threading.Event()

    def stubborn(completion: Completion) -> float:
        released.wait(60)
        return 1.0

    policy = offering(FunctionReward(stubborn))
    async with GuidedReasoning(ScriptedBackend(RESPONSES), policy=policy) as reasoning:
        try:
            answer = await ask_in_time(reasoning, 0.5, **STEPS)
        finally:
            released.set()
    assert answer.text in RESPONSES


def endless(completion: Completion) -> float:
    while True:
        pass


async def test_a_judge_in_a_process_is_killed() -> None:
    reward = FunctionReward(endless, process=True, timeout=None)
    async with GuidedReasoning(ScriptedBackend(RESPONSES), policy=offering(reward)) as reasoning:
        await ask_in_time(reasoning, 1, **STEPS)
    await reward.aclose()


@again_after_a_standstill
async def test_a_pattern_that_backtracks_for_ever_is_ended() -> None:
    backend = ScriptedBackend(["a" * 40 + "!"])
    async with GuidedReasoning(backend) as reasoning:
        answer = await ask_in_time(reasoning, 0.5, reward={"name": "regex", "pattern": "^(a+)+$"})
    assert answer.text == "a" * 40 + "!"


@again_after_a_standstill
async def test_a_program_that_never_ends_is_ended() -> None:
    try:
        select()
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    backend = ScriptedBackend(["```python\ndef f(x):\n    while True: pass\n```"])
    reward = {"name": "code_tests", "test": "assert f(1) == 1", "entry_point": "f"}
    async with GuidedReasoning(backend, policy=Policy(rewards=["code_tests"])) as reasoning:
        answer = await ask_in_time(reasoning, 1, reward=reward)
    assert "while True" in answer.text


# Real models


@pytest.mark.parametrize("proposal", [None, "tiny/qwen3-small"])
async def test_the_embedded_model_keeps_the_limit(proposal: str | None) -> None:
    policy = Policy(max_candidates=64, max_rollouts=32)
    heavy = {"num_candidates": 64, "num_rollouts": 32, "num_steps": 8, "temperature": 2.0}
    async with GuidedReasoning("tiny/qwen3", proposal=proposal, policy=policy) as reasoning:
        await reasoning(QUESTION, effort="low", max_tokens=32)  # The first call is slower than all others.
        for limit in (0.5, 1.5):
            answer = await ask_in_time(reasoning, limit, max_tokens=256, settings=heavy)
            assert answer.model == "tiny/qwen3"


async def test_many_at_once_keep_their_limits_on_the_embedded_model() -> None:
    heavy = {"num_candidates": 32, "num_rollouts": 16, "num_steps": 8, "temperature": 2.0}
    async with GuidedReasoning("tiny/qwen3", max_concurrency=4) as reasoning:
        await reasoning(QUESTION, effort="low", max_tokens=32)
        late: list[float] = []
        for _ in range(TRIES):
            async with nothing_left(reasoning):
                began = time.monotonic()
                answers = await asyncio.gather(
                    *(
                        reasoning(question=QUESTION, timeout=1, max_tokens=256, settings=heavy | {"seed": seed})
                        for seed in range(12)
                    )
                )
                late.append(time.monotonic() - began - 1)
            if late[-1] <= tolerance(1):
                break
    assert min(late) <= tolerance(1)
    assert all(answer.cut_short for answer in answers)


async def test_a_server_that_hangs_does_not_hold_up_the_answer() -> None:
    with FakeServer(ScriptedModel(RESPONSES, name="m")) as server:
        async with GuidedReasoning(f"vllm/m@{server.base_url}") as reasoning:
            server.faults = FaultPlan.when(lambda asked: asked.generation, "hang")
            await ask_in_time(reasoning, 1, max_tokens=24)


# Token budgets


async def test_a_token_budget_ends_a_run_with_the_best_answer_so_far() -> None:
    async with GuidedReasoning(ScriptedBackend(RESPONSES)) as reasoning, nothing_left(reasoning):
        answer = await reasoning(question=QUESTION, token_budget=60, **STEPS)
    assert (answer.finish_reason, answer.cut_short) == ("budget", True)
    assert answer.text in RESPONSES
    assert answer.confidence is not None
    assert answer.usage.total_tokens < 60 + 4 * 2 * 9  # Exceeded by less than what its largest call may draw.
    assert "the budget of 60 tokens is spent" in answer.warnings[0]


async def test_a_token_budget_that_ends_in_the_first_step_leaves_a_plain_draw() -> None:
    async with GuidedReasoning(ScriptedBackend(RESPONSES)) as reasoning, nothing_left(reasoning):
        answer = await reasoning(question=QUESTION, token_budget=13, **STEPS)
    assert answer.finish_reason == "budget"
    assert answer.text in RESPONSES
    assert answer.usage.total_tokens <= 13 + 12


async def test_whichever_ends_first_ends_the_run() -> None:
    backend = ScriptedBackend(RESPONSES, delay=0.05)
    async with GuidedReasoning(backend) as reasoning:
        budget = await reasoning(question=QUESTION, token_budget=60, timeout=60, **STEPS)
        limit = await reasoning(question=QUESTION, token_budget=10**6, timeout=0.12, **STEPS)
    assert (budget.finish_reason, limit.finish_reason) == ("budget", "timeout")


# Cancelled calls


async def cancelled(reasoning: GuidedReasoning, when: Callable[[], Any], **fields: Any) -> None:
    """Cancel a call at some point, and check what is left of it."""
    async with nothing_left(reasoning):
        call = asyncio.create_task(reasoning(question=QUESTION, **fields))
        await until(when)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_a_call_that_is_cancelled_in_its_first_step_leaves_nothing() -> None:
    backend = ScriptedBackend(RESPONSES, delay=300)
    async with GuidedReasoning(backend) as reasoning:
        await cancelled(reasoning, lambda: backend.active == 2)  # Its candidates, and the plain draw.
        await cancelled(reasoning, lambda: backend.active == 2, token_budget=10**6)


async def test_a_call_that_is_cancelled_at_any_turn_of_the_loop_leaves_nothing() -> None:
    backend = ScriptedBackend(RESPONSES, delay=0.001)
    async with GuidedReasoning(backend) as reasoning:
        for turns in range(60):
            async with nothing_left(reasoning):
                call = asyncio.create_task(reasoning(question=QUESTION, timeout=30, **STEPS))
                for _ in range(turns):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)


async def test_a_call_that_is_cancelled_later_leaves_nothing() -> None:
    backend = ScriptedBackend(RESPONSES)

    def hear(event: Event) -> None:
        if event.type == "block_committed" and event.step == 2:
            backend._delay = 300  # From here on no call ends, so that it is certainly cancelled in the third step.

    async with GuidedReasoning(backend) as reasoning:
        await cancelled(reasoning, lambda: backend.active, on_event=hear, **STEPS)


async def test_a_call_that_is_cancelled_in_the_line_leaves_nothing() -> None:
    backend = ScriptedBackend(RESPONSES, delay=300)
    async with GuidedReasoning(backend, max_concurrency=1) as reasoning:
        first = asyncio.create_task(reasoning(QUESTION))
        await until(lambda: backend.active)
        second = asyncio.create_task(reasoning(QUESTION))
        await until(lambda: reasoning.places.waiting)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert (reasoning.places.active, reasoning.places.waiting) == (1, 0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert (reasoning.places.active, backend.active) == (0, 0)


async def test_a_call_that_is_cancelled_while_it_is_judged_leaves_nothing() -> None:
    judging = asyncio.Event()

    class Stuck(Slow):
        async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
            judging.set()
            return await super().score(prompt, completions)

    policy = offering(Stuck(judging=30))
    async with GuidedReasoning(ScriptedBackend(RESPONSES), policy=policy) as reasoning:
        await cancelled(reasoning, judging.is_set)


async def test_a_call_that_is_cancelled_on_the_embedded_model_frees_the_engine() -> None:
    async with backends.load("tiny/qwen3") as backend, GuidedReasoning(backend) as reasoning:
        began: list[Event] = []
        await cancelled(reasoning, lambda: began, effort="high", max_tokens=400, on_event=began.append)
        answer = await asyncio.wait_for(reasoning(QUESTION, effort="low", max_tokens=32), 60)
        assert answer.text
