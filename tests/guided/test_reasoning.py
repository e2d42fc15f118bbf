"""`GuidedReasoning` as programs call it: plans, places, budgets, traces, event loops."""

from __future__ import annotations

import asyncio
import json
import stat
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import backends
import rewards
from backends import BackendError, Capabilities, Completion, Metered, Prompt, QueueFullError
from backends.scripted import ScriptedBackend
from ets_agent import (
    ConfigError,
    ETSConfig,
    Finished,
    GuidedReasoning,
    GuidedRequest,
    Policy,
    RequestError,
    RewardOffer,
    RunningLoopError,
)
from ets_agent.traces import TraceError, TraceWriter, read_trace
from rewards import Reward, registry

SCRIPT = {"a b c d\n#### 1": 3.0, "a c b d\n#### 2": 1.0}
BASE = ETSConfig(max_tokens=16, seed=0)


@pytest.fixture
async def reasoning() -> AsyncIterator[GuidedReasoning]:
    async with GuidedReasoning(ScriptedBackend(SCRIPT), config=BASE) as tool:
        yield tool


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def slow(seconds: float = 60) -> ScriptedBackend:
    return ScriptedBackend(SCRIPT, delay=seconds)


# What is asked reaches the model.


@pytest.fixture
def prompts() -> list[Prompt]:
    return []


def listening(prompts: list[Prompt], **can: Any) -> ScriptedBackend:
    def respond(prompt: Prompt) -> dict[str, float]:
        prompts.append(prompt)
        return SCRIPT

    return ScriptedBackend(respond, capabilities=Capabilities(**can))


async def test_a_question_messages_or_a_continuation_is_what_the_model_sees(prompts: list[Prompt]) -> None:
    tool = GuidedReasoning(listening(prompts), config=BASE)
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "q"},
    ]
    await tool("q")
    await tool(messages=chat)
    await tool(continuation="2 + 2 =")
    assert prompts == [[{"role": "user", "content": "q"}], chat, "2 + 2 ="]


async def test_a_model_without_chat_goes_on_with_the_question(prompts: list[Prompt]) -> None:
    tool = GuidedReasoning(listening(prompts, chat=False), config=BASE)
    await tool("q")
    assert prompts == ["q"]
    with pytest.raises(RequestError, match="takes no chat messages"):
        await tool(messages=[{"role": "user", "content": "q"}])


async def test_a_model_that_cannot_go_on_answers_in_one_step(prompts: list[Prompt]) -> None:
    tool = GuidedReasoning(listening(prompts, continue_prefix=False), config=ETSConfig(max_tokens=16, num_steps=4))
    assert (await tool("q", effort="high")).text
    with pytest.raises(RequestError, match="cannot continue a prefix, so only num_steps=1 is possible"):
        await tool("q", settings={"num_steps": 2})


async def test_requests_come_as_objects_mappings_or_fields(reasoning: GuidedReasoning) -> None:
    request = GuidedRequest(question="q", max_tokens=8)
    for answer in (
        await reasoning(request),
        await reasoning({"question": "q", "max_tokens": 8}),
        await reasoning(question="q", max_tokens=8),
        await reasoning("q", max_tokens=8),
        await reasoning(GuidedRequest(question="q", max_tokens=3), max_tokens=8),
        await reasoning({"question": "q", "max_tokens": 3}, max_tokens=8),
    ):
        assert answer.text == (await reasoning(request)).text
    with pytest.raises(RequestError, match="exactly one of"):
        await reasoning()


async def test_the_same_seed_gives_the_same_answer_whatever_runs_beside(reasoning: GuidedReasoning) -> None:
    alone = await reasoning("q", settings={"seed": 7})
    beside = await asyncio.gather(*(reasoning("q", settings={"seed": seed % 9}) for seed in range(18)))
    assert beside[7].text == beside[16].text == alone.text
    assert alone.seed == 7
    assert len({answer.trace_id for answer in beside}) == 18


@pytest.mark.parametrize(
    "fields",
    [
        {"question": ""},
        {"messages": []},
        {"question": "w " * 100},
        {"question": "q", "reward": "entropy"},
        {"question": "q", "settings": {"proposal_temperature": 0.5}},
    ],
    ids=str,
)
async def test_what_only_the_model_can_tell_is_the_callers_error_too(fields: dict[str, Any]) -> None:
    backend = ScriptedBackend(SCRIPT, context=64)
    tool = GuidedReasoning(backend, config=BASE, policy=Policy(rewards=["self_consistency", "entropy"]))
    with pytest.raises(RequestError):
        await tool(**fields)


async def test_a_failing_model_is_no_error_of_the_callers(reasoning: GuidedReasoning) -> None:
    await reasoning.backend.aclose()
    with pytest.raises(BackendError, match="closed"):
        await reasoning("q")
    assert reasoning.places.active == 0


# Rewards.


class Counted(Reward):
    """Counts how many of it were made and closed."""

    made = closed = 0

    def __init__(self, bonus: float = 0.0) -> None:
        type(self).made += 1

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        return [0.0 for _ in completions]

    async def aclose(self) -> None:
        type(self).closed += 1


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Counted]:
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))
    kind = type("Mine", (Counted,), {"made": 0, "closed": 0, "judged": 0})
    rewards.register("counted")(kind)
    return kind


@pytest.mark.parametrize("reward", ["counted", "counted:bonus=2", {"name": "counted", "bonus": 2}, None])
async def test_a_reward_that_a_run_was_judged_by_is_closed_with_it(reward: Any, counted: type[Counted]) -> None:
    closed: set[int] = set()
    judged: set[int] = set()

    async def score(self: Any, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        judged.add(id(self))
        kept.append(self)
        return [0.0 for _ in completions]

    async def aclose(self: Any) -> None:
        closed.add(id(self))

    kept: list[Any] = []
    counted.score, counted.aclose = score, aclose  # type: ignore[method-assign]
    policy = Policy(rewards=[RewardOffer(name="counted", arguments=("bonus",))])
    tool = GuidedReasoning(ScriptedBackend(SCRIPT), config=BASE, policy=policy)
    await tool("q", reward=reward)
    assert judged
    assert judged <= closed


async def test_a_reward_is_closed_when_its_run_is_cancelled(counted: type[Counted]) -> None:
    tool = GuidedReasoning(slow(), config=BASE, policy=Policy(rewards=["counted"]))
    task = asyncio.create_task(tool("q"))
    await until(lambda: tool.backend.active)  # type: ignore[attr-defined]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert counted.closed >= 1


async def test_a_reward_object_of_the_operators_is_shared_and_stays_open(counted: type[Counted]) -> None:
    policy = Policy(rewards=[RewardOffer(name="ours", reward=counted())])
    async with GuidedReasoning(ScriptedBackend(SCRIPT), config=BASE, policy=policy) as tool:
        await asyncio.gather(*(tool("q") for _ in range(3)))
    assert (counted.made, counted.closed) == (1, 0)


async def test_a_function_of_the_operators_judges() -> None:
    def second(completion: Completion) -> float:
        return float("2" in completion.text)

    policy = Policy(rewards=[RewardOffer(name="second", reward=second)])
    tool = GuidedReasoning(ScriptedBackend(SCRIPT), config=BASE, policy=policy)
    assert (await tool("q", reward="second", effort="high")).text.endswith("#### 2")


async def test_code_is_judged_where_it_is_offered() -> None:
    try:
        rewards.sandbox.select()  # type: ignore[attr-defined]
    except rewards.SandboxUnavailableError as error:
        pytest.skip(str(error))
    script = ["def f(x):\n    return x + 1", "def f(x):\n    return x - 1"]
    tool = GuidedReasoning(ScriptedBackend(script), config=BASE, policy=Policy(rewards=["code_tests"]))
    answer = await tool("Write f.", reward={"name": "code_tests", "test": "assert f(1) == 2"})
    assert "x + 1" in answer.text
    assert answer.reward == 1.0


# Progress, cancelling, places.


async def test_events_are_told_in_order_to_functions_of_both_kinds(reasoning: GuidedReasoning) -> None:
    first: list[str] = []
    second: list[str] = []

    async def tell(event: Any) -> None:
        second.append(event.type)

    await reasoning("q", effort="low", on_event=lambda event: first.append(event.type))
    await reasoning("q", effort="low", on_event=tell)
    step = ["step_started", "candidates_weighed", "block_committed"]
    assert first == second
    assert first[:3] == step
    assert first[-1] == "finished"


async def test_a_listener_that_fails_ends_the_run(reasoning: GuidedReasoning) -> None:
    def fail(event: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await reasoning("q", on_event=fail)
    assert reasoning.places.active == 0


async def test_cancelling_a_call_ends_its_work_and_frees_its_place() -> None:
    tool = GuidedReasoning(slow(), config=BASE)
    task = asyncio.create_task(tool("q"))
    await until(lambda: tool.backend.active)  # type: ignore[attr-defined]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (tool.backend.active, tool.places.active) == (0, 0)  # type: ignore[attr-defined]


async def test_leaving_a_run_early_leaves_nothing_behind(reasoning: GuidedReasoning) -> None:
    events = reasoning.run(reasoning.plan("q"))
    async for _ in events:
        break
    assert reasoning.places.active == 1
    await events.aclose()
    assert reasoning.places.active == 0


async def test_no_more_answers_are_in_the_making_than_there_are_places() -> None:
    tool = GuidedReasoning(slow(0.001), config=BASE, max_concurrency=2)
    most = 0

    def look(event: Any) -> None:
        nonlocal most
        most = max(most, tool.places.active)

    answers = await asyncio.gather(*(tool("q", effort="low", on_event=look) for _ in range(6)))
    assert most == 2
    assert len({answer.text for answer in answers}) == 1


async def test_a_full_queue_turns_calls_away_at_once() -> None:
    tool = GuidedReasoning(slow(), config=BASE, max_concurrency=1, max_queue=1)
    tasks = [asyncio.create_task(tool("q")) for _ in range(2)]
    await until(lambda: tool.places.waiting)
    with pytest.raises(QueueFullError, match="1 calls are under way and 1 wait already"):
        await tool("q")
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert (tool.places.active, tool.places.waiting) == (0, 0)


async def test_waiting_for_a_place_counts_against_the_time_limit() -> None:
    tool = GuidedReasoning(slow(), config=BASE, max_concurrency=1)
    occupant = asyncio.create_task(tool("q"))
    await until(lambda: tool.backend.active)  # type: ignore[attr-defined]
    began = time.monotonic()
    answer = await tool("q", timeout=0.02)
    waited = time.monotonic() - began
    assert (answer.text, answer.answer, answer.confidence) == ("", None, None)
    assert (answer.cut_short, answer.finish_reason) == (True, "timeout")
    assert answer.warnings == ("all places were taken until the time was over",)
    assert answer.seed is None, "no run, no seed"
    assert 0 < answer.usage.seconds <= waited, "the time limit began before the wait, so it may be less than that"
    assert tool.places.waiting == 0
    occupant.cancel()
    await asyncio.wait([occupant])


async def test_the_time_limit_begins_with_the_plan() -> None:
    tool = GuidedReasoning(slow(), config=BASE)
    plan = tool.plan({"question": "q", "timeout": 100})
    assert plan.deadline is not None
    assert plan.deadline - time.monotonic() <= 100
    late = replace(plan, deadline=time.monotonic() - 1)
    async with asyncio.timeout(10):
        *_, last = [event async for event in tool.run(late)]
    assert isinstance(last, Finished)
    assert last.result.finish_reason == "timeout"


async def test_a_token_budget_cuts_an_answer_short(reasoning: GuidedReasoning) -> None:
    answer = await reasoning("q", effort="high", token_budget=90)
    assert (answer.finish_reason, answer.cut_short) == ("budget", True)
    whole = await reasoning("q", effort="high")
    assert whole.finish_reason == "stop"
    assert answer.usage.total_tokens < whole.usage.total_tokens
    policy = Policy(max_token_budget=90)
    tool = GuidedReasoning(ScriptedBackend(SCRIPT), config=BASE, policy=policy)
    assert (await tool("q", effort="high")).finish_reason == "budget"


async def test_each_answer_has_a_budget_of_its_own(reasoning: GuidedReasoning) -> None:
    alone = await reasoning("q", effort="low", token_budget=500)
    beside = await asyncio.gather(*(reasoning("q", effort="low", token_budget=500) for _ in range(8)))
    assert {answer.finish_reason for answer in [alone, *beside]} == {"stop"}


# Traces.


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


async def test_every_run_leaves_a_trace_of_its_name(tmp_path: Path) -> None:
    tool = GuidedReasoning(ScriptedBackend(SCRIPT), config=BASE, traces=tmp_path)
    answers = await asyncio.gather(*(tool(f"q{n}") for n in range(3)))
    assert {path.name for path in files(tmp_path)} == {f"{answer.trace_id}.jsonl" for answer in answers}
    for number, answer in enumerate(answers):
        path = tmp_path / f"{answer.trace_id}.jsonl"
        trace = read_trace(path)
        assert trace.prompt == [{"role": "user", "content": f"q{number}"}]
        assert (trace.trace_id, trace.reward) == (answer.trace_id, "self_consistency")
        assert trace.result is not None
        assert trace.result.text == answer.text
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_cancelled_run_leaves_what_there_was(tmp_path: Path) -> None:
    tool = GuidedReasoning(ScriptedBackend(SCRIPT), config=BASE, traces=tmp_path)
    events = tool.run(tool.plan("q"))
    async for event in events:
        if event.type == "block_committed":
            break
    await events.aclose()
    [path] = files(tmp_path)
    trace = read_trace(path)
    assert not trace.finished
    assert len(trace.steps) == 1


def test_traces_need_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no folder .*missing for traces"):
        GuidedReasoning(ScriptedBackend(SCRIPT), traces=tmp_path / "missing")


@pytest.mark.parametrize("lines", range(4))
async def test_a_full_disk_does_not_lose_the_answer(
    lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = [lines]
    write = TraceWriter._line

    def full(self: TraceWriter, text: str) -> None:
        if not left[0]:
            raise TraceError("No space left on device")
        left[0] -= 1
        write(self, text)

    monkeypatch.setattr(TraceWriter, "_line", full)
    tool = GuidedReasoning(ScriptedBackend(SCRIPT), config=BASE, traces=tmp_path)
    answer = await tool("q")
    assert answer.answer in ("1", "2")
    [record] = caplog.records
    assert "No space left on device" in record.getMessage()
    assert answer.trace_id in record.getMessage()
    written = [len(path.read_text().splitlines()) for path in files(tmp_path)]
    assert written == ([lines] if lines > 1 else [])  # A header alone tells nothing, and is removed.


async def test_a_folder_that_went_away_does_not_lose_the_answer(tmp_path: Path) -> None:
    folder = tmp_path / "traces"
    folder.mkdir()
    tool = GuidedReasoning(ScriptedBackend(SCRIPT), config=BASE, traces=folder)
    folder.rmdir()
    assert (await tool("q")).answer in ("1", "2")


# Whose models they are, and from where it is called.


async def test_models_opened_by_name_are_closed_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: dict[str, ScriptedBackend] = {}

    def load(name: str) -> ScriptedBackend:
        opened[name] = ScriptedBackend(SCRIPT)
        return opened[name]

    monkeypatch.setattr(backends, "load", load)
    async with GuidedReasoning("by/name", config=BASE) as tool:
        assert (await tool("q")).answer in ("1", "2")
        assert (await tool("q", token_budget=10_000)).answer in ("1", "2")
    await tool.aclose()
    with pytest.raises(BackendError, match="closed"):
        await tool("q")
    ours = ScriptedBackend(SCRIPT)
    async with GuidedReasoning(ours, config=BASE) as tool:
        await tool("q")
    assert (await GuidedReasoning(ours, config=BASE)("q")).answer in ("1", "2")


def test_what_is_wrong_with_the_operators_settings_is_said_at_once() -> None:
    with pytest.raises(backends.UnknownModelError):
        GuidedReasoning("no/such/model/at/all")
    with pytest.raises(ConfigError, match="proposal_temperature"):
        GuidedReasoning(ScriptedBackend(SCRIPT), config=ETSConfig(proposal_temperature=0.5))
    for concurrency in (0, True, 1.5):
        with pytest.raises(BackendError, match="max_concurrency"):
            GuidedReasoning(ScriptedBackend(SCRIPT), max_concurrency=concurrency)  # type: ignore[arg-type]


def test_threads_with_event_loops_of_their_own_share_it(tiny_parts: Any) -> None:
    from backends.local import LocalBackend

    tool = GuidedReasoning(LocalBackend(*tiny_parts, name="tiny"), config=BASE, max_concurrency=2)
    answers: list[str] = []

    async def ask() -> None:
        both = await asyncio.gather(*(tool("Ada has 4 apples.", effort="low", max_tokens=8) for _ in range(2)))
        answers.extend(answer.text for answer in both)

    threads = [threading.Thread(target=asyncio.run, args=(ask(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 6
    assert len(set(answers)) == 1
    assert (tool.places.active, tool.places.waiting) == (0, 0)
    asyncio.run(tool.backend.aclose())


def test_one_event_loop_after_another_may_use_it() -> None:
    tool = GuidedReasoning(ScriptedBackend(SCRIPT), config=BASE)
    texts = {asyncio.run(tool("q")).text for _ in range(3)}  # type: ignore[arg-type]
    assert len(texts) == 1


def test_it_tells_frameworks_its_name_and_schema() -> None:
    tool = GuidedReasoning(ScriptedBackend(SCRIPT))
    assert tool.name == "guided_reasoning"
    assert "hard, self-contained question" in tool.description
    assert json.loads(json.dumps(tool.parameters()))["required"][0] == "question"


# Without an event loop.


def test_a_script_without_an_event_loop_gets_an_answer_and_all_is_closed(counted: type[Counted]) -> None:
    async def aclose(self: Any) -> None:
        await asyncio.sleep(0.3)
        type(self).closed += 1

    counted.aclose = aclose  # type: ignore[method-assign]
    tool = GuidedReasoning(ScriptedBackend(SCRIPT), config=BASE, policy=Policy(rewards=["counted"]))
    assert tool.answer_sync("q", effort="low").finish_reason == "stop"
    assert counted.closed == 1


async def test_blocking_a_running_event_loop_is_refused(reasoning: GuidedReasoning) -> None:
    with pytest.raises(RunningLoopError, match=r"answer_sync would block .* use 'await reasoning\(…\)' here"):
        reasoning.answer_sync("q")


async def test_what_was_drawn_before_a_budget_ended_the_run_is_counted() -> None:
    async with backends.load("tiny/qwen3") as one, backends.load("tiny/qwen3-small") as other:
        for token_budget in range(60, 460, 50):
            reference, proposal = Metered(one), Metered(other)
            tool = GuidedReasoning(reference, proposal=proposal, config=BASE.replace(max_tokens=24))
            answer = await tool("Ada has 4 boxes with 25 cards in each.", token_budget=token_budget)
            met = (reference.usage, proposal.usage)
            assert answer.finish_reason == "budget"
            assert answer.usage.candidate_tokens == sum(usage.candidate_tokens for usage in met)
            assert answer.usage.rollout_tokens == sum(usage.rollout_tokens for usage in met)
            assert answer.usage.scoring_tokens == sum(usage.scoring_tokens for usage in met)
