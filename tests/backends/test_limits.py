from __future__ import annotations

import asyncio
import gc
import random
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from backends import BackendError, Pool, QueueFullError, SamplingParams
from backends.limits import Limited, Limiter
from backends.openai import OpenAIBackend
from backends.scripted import ScriptedBackend
from ets_agent import ETS, Result
from tests.fake_server import FakeServer, ScriptedModel

PLAIN = SamplingParams()


async def _turns(times: int = 5) -> None:
    """Let everything run that can."""
    for _ in range(times):
        await asyncio.sleep(0)


class Job:
    """A task that takes a place and keeps it until it is told to leave."""

    def __init__(
        self, place: AbstractAsyncContextManager[None], log: list[Any] | None = None, name: Any = None
    ) -> None:
        self.inside = False
        self.leave = asyncio.Event()
        self._log = log
        self._name = name
        self.task = asyncio.create_task(self._work(place))

    async def _work(self, place: AbstractAsyncContextManager[None]) -> None:
        async with place:
            self.inside = True
            if self._log is not None:
                self._log.append(self._name)
            try:
                await self.leave.wait()
            finally:
                self.inside = False


async def _finish(*jobs: Job) -> None:
    for job in jobs:
        job.leave.set()
    await asyncio.gather(*(job.task for job in jobs), return_exceptions=True)


async def test_a_call_waits_for_a_place() -> None:
    limiter = Limiter(2)
    jobs = [Job(limiter) for _ in range(3)]
    await _turns()
    assert [job.inside for job in jobs] == [True, True, False]
    assert (limiter.active, limiter.waiting) == (2, 1)
    await _finish(jobs[1])
    await _turns()
    assert jobs[2].inside
    assert (limiter.active, limiter.waiting) == (2, 0)
    await _finish(*jobs)
    assert (limiter.active, limiter.waiting) == (0, 0)


async def test_places_are_given_in_the_order_of_asking() -> None:
    limiter, log = Limiter(1), list[int]()
    jobs = [Job(limiter, log, number) for number in range(20)]
    await _turns()
    for number, job in enumerate(jobs):
        assert log == list(range(number + 1))
        await _finish(job)
        await _turns()


async def test_nobody_overtakes_one_who_was_given_a_place_but_has_not_heard_of_it() -> None:
    limiter, log = Limiter(1), list[str]()
    first, second = Job(limiter, log, "first"), Job(limiter, log, "second")
    await _turns()
    first.leave.set()
    await first.task
    third = Job(limiter, log, "third")
    await _turns()
    assert log == ["first", "second"]
    assert (limiter.active, limiter.waiting) == (1, 1)
    await _finish(second, third)


async def test_a_full_queue_refuses_at_once() -> None:
    limiter = Limiter(1, max_queue=2)
    jobs = [Job(limiter) for _ in range(3)]
    await _turns()
    with pytest.raises(QueueFullError) as caught:
        async with limiter:
            raise AssertionError
    assert str(caught.value) == (
        "1 calls are under way and 2 wait already, as many as may (max_concurrency=1, max_queue=2); try again later"
    )
    assert (limiter.active, limiter.waiting) == (1, 2)
    await _finish(jobs[0])
    await _turns()
    late = Job(limiter)
    await _turns()
    assert limiter.waiting == 2
    await _finish(*jobs, late)


async def test_without_a_queue_nobody_waits() -> None:
    limiter = Limiter(1, max_queue=0)
    async with limiter:
        with pytest.raises(QueueFullError):
            await limiter.__aenter__()
    async with limiter:
        assert limiter.active == 1


class Calls:
    """Calls of `Limiter.map` that go on until they are told to; lists the items in the order in which they began."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.go_on = asyncio.Event()

    async def __call__(self, item: str) -> str:
        self.begun.append(item)
        await self.go_on.wait()
        if item == "bad":
            raise KeyError(item)
        return item.upper()


async def test_calls_over_items_begin_as_there_are_places_and_keep_their_order() -> None:
    limiter, calls = Limiter(2), Calls()
    work = asyncio.create_task(limiter.map(calls, ["a", "b", "c"]))
    await _turns()
    assert (calls.begun, limiter.active, limiter.waiting) == (["a", "b"], 2, 1)
    calls.go_on.set()
    assert await work == ["A", "B", "C"]
    assert (limiter.active, limiter.waiting) == (0, 0)
    assert await limiter.map(calls, []) == []


async def test_what_was_begun_waits_however_full_the_queue_is_and_keeps_nobody_out_of_it() -> None:
    limiter, calls = Limiter(2, max_queue=1), Calls()
    work = [asyncio.create_task(limiter.map(calls, ["a", "b", "c", "d"])) for _ in range(2)]
    await _turns()
    assert (limiter.active, limiter.waiting) == (2, 2), "of each call, one item asks for a place"
    newcomer = Job(limiter)
    await _turns()
    with pytest.raises(QueueFullError, match="2 calls are under way and 1 wait already"):
        await limiter.__aenter__()
    with pytest.raises(QueueFullError):
        async with limiter.place():
            raise AssertionError
    work.append(asyncio.create_task(limiter.map(calls, ["e"])))
    going_on = Job(limiter.place(begun=True))
    await _turns()
    assert limiter.waiting == 5
    calls.go_on.set()
    await _finish(newcomer, going_on)
    assert await asyncio.gather(*work) == [["A", "B", "C", "D"]] * 2 + [["E"]]
    assert (limiter.active, limiter.waiting) == (0, 0)


@pytest.mark.parametrize("items", [["bad"], ["a", "bad", "c"]])
async def test_the_first_call_to_fail_ends_the_others_and_is_what_is_raised(items: list[str]) -> None:
    limiter, calls = Limiter(2), Calls()
    calls.go_on.set()
    with pytest.raises(KeyError):
        await limiter.map(calls, items)
    assert (limiter.active, limiter.waiting) == (0, 0)


@pytest.mark.parametrize("items", [["a"], ["a", "b", "c"]])
@pytest.mark.parametrize("turns", range(5))
async def test_calls_cancelled_at_any_moment_leave_their_places(items: list[str], turns: int) -> None:
    limiter, calls = Limiter(2), Calls()
    work = asyncio.create_task(limiter.map(calls, items))
    for _ in range(turns):
        await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert (limiter.active, limiter.waiting) == (0, 0)


async def test_lower_ranks_go_first_and_equal_ones_in_order() -> None:
    limiter, calls = Limiter(1), Calls()
    async with limiter:
        work = [
            asyncio.create_task(limiter.map(calls, items, rank=rank))
            for items, rank in [(["late"], 2), (["early", "early too"], 1), (["late too"], 2), (["first"], 0)]
        ]
        await _turns()
        work[2].cancel()
        calls.go_on.set()
    await asyncio.gather(*work, return_exceptions=True)
    assert calls.begun == ["first", "early", "early too", "late"]
    assert (limiter.active, limiter.waiting) == (0, 0)


async def test_a_failure_leaves_the_place() -> None:
    limiter = Limiter(1)
    with pytest.raises(KeyError):
        async with limiter:
            raise KeyError
    assert limiter.active == 0


async def test_a_cancelled_wait_leaves_the_line() -> None:
    limiter = Limiter(1, max_queue=2)
    jobs = [Job(limiter) for _ in range(3)]
    await _turns()
    jobs[1].task.cancel()
    await _turns()
    assert jobs[1].task.cancelled()
    assert (limiter.active, limiter.waiting) == (1, 1)
    await _finish(jobs[0])
    await _turns()
    assert jobs[2].inside
    await _finish(*jobs)
    assert limiter.active == 0


@pytest.mark.parametrize("turns", range(4))
async def test_a_task_cancelled_while_it_is_given_a_place_passes_it_on(turns: int) -> None:
    limiter, complaints = Limiter(1), list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    holder, unlucky, last = (Job(limiter) for _ in range(3))
    await _turns()
    holder.leave.set()
    while limiter.waiting == 2:
        await asyncio.sleep(0)
    await _turns(turns)
    unlucky.task.cancel()
    await _turns(8)
    assert unlucky.task.cancelled()
    assert last.inside
    assert (limiter.active, limiter.waiting) == (1, 0)
    await _finish(last)
    assert limiter.active == 0
    assert not complaints


async def test_all_who_wait_may_be_cancelled_at_once() -> None:
    limiter = Limiter(1)
    jobs = [Job(limiter) for _ in range(50)]
    await _turns()
    for job in jobs:
        job.task.cancel()
    await asyncio.gather(*(job.task for job in jobs), return_exceptions=True)
    assert (limiter.active, limiter.waiting) == (0, 0)


@hypothesis.given(
    places=st.integers(1, 3),
    steps=st.lists(st.tuples(st.sampled_from(["start", "cancel", "leave", "turn"]), st.integers(0, 11)), max_size=60),
)
def test_no_place_is_lost_or_made_whatever_is_cancelled_when(places: int, steps: list[tuple[str, int]]) -> None:
    async def check() -> None:
        limiter, jobs = Limiter(places), list[Job]()
        for action, which in steps:
            if action == "start":
                jobs.append(Job(limiter))
            elif action == "turn":
                await asyncio.sleep(0)
            elif jobs and action == "cancel":
                jobs[which % len(jobs)].task.cancel()
            elif jobs:
                jobs[which % len(jobs)].leave.set()
            assert sum(job.inside for job in jobs) <= limiter.active <= places
        await _turns(8)
        assert sum(job.inside for job in jobs) == limiter.active
        assert limiter.active == places or not limiter.waiting
        async with asyncio.timeout(10):
            await _finish(*jobs)
        assert (limiter.active, limiter.waiting) == (0, 0)

    asyncio.run(check())


@pytest.mark.parametrize("seed", range(5))
async def test_hundreds_of_tasks_cancelled_at_random_moments_lose_no_place(seed: int) -> None:
    rng, limiter, inside, served = random.Random(seed), Limiter(5), 0, 0

    async def work() -> None:
        nonlocal inside, served
        async with limiter:
            inside += 1
            assert inside <= 5
            try:
                await _turns(rng.randrange(4))
                served += 1
            finally:
                inside -= 1

    tasks = [asyncio.create_task(work()) for _ in range(600)]
    victims = rng.sample(tasks, 300)
    while victims:
        await _turns(rng.randrange(3))
        victims.pop().cancel()
    async with asyncio.timeout(30):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert served >= 300
    assert (limiter.active, limiter.waiting, inside) == (0, 0, 0)


def test_event_loops_may_use_it_one_after_the_other() -> None:
    limiter = Limiter(1)

    async def use() -> None:
        jobs = [Job(limiter) for _ in range(3)]
        await _turns()
        assert limiter.waiting == 2
        await _finish(*jobs)

    for _ in range(3):
        asyncio.run(use())
    assert (limiter.active, limiter.waiting) == (0, 0)


def _in_threads(count: int, work: Callable[[int], Any]) -> None:
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    assert not failures


@pytest.fixture
def restless_threads() -> Iterator[None]:
    """Let threads take turns between almost any two instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless_threads")
@pytest.mark.parametrize("cancelling", [False, True])
def test_threads_with_loops_of_their_own_share_it(cancelling: bool) -> None:
    limiter, lock, inside, most, served = Limiter(3), threading.Lock(), 0, 0, 0

    async def one(rng: random.Random) -> None:
        nonlocal inside, most, served
        async with limiter:
            with lock:
                inside += 1
                most = max(most, inside)
            try:
                await _turns(rng.randrange(3))
            finally:
                with lock:
                    inside -= 1
                    served += 1

    async def many(rng: random.Random) -> None:
        tasks = [asyncio.create_task(one(rng)) for _ in range(200)]
        if cancelling:
            for task in rng.sample(tasks, 100):
                await _turns(rng.randrange(2))
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}

    _in_threads(4, lambda number: asyncio.run(many(random.Random(number))))
    assert (limiter.active, limiter.waiting, inside) == (0, 0, 0)
    assert most <= 3
    assert served == 800 or (cancelling and served >= 400)


def test_a_place_left_in_one_thread_is_taken_in_another() -> None:
    limiter = Limiter(1)
    waits, leave = threading.Event(), threading.Event()
    log: list[str] = []

    async def hold() -> None:
        async with limiter:
            waits.set()
            await asyncio.to_thread(leave.wait)
            log.append("left")

    async def wait() -> None:
        await asyncio.to_thread(waits.wait)
        asyncio.get_running_loop().call_soon(leave.set)
        async with limiter:
            log.append("taken")

    _in_threads(2, lambda number: asyncio.run((hold, wait)[number]()))
    assert log == ["left", "taken"]


def test_those_whose_loop_was_closed_are_passed_over() -> None:
    limiter = Limiter(1)
    loop = asyncio.new_event_loop()

    async def join() -> asyncio.Task[Any]:
        task = asyncio.ensure_future(limiter.__aenter__())
        await _turns()
        return task

    async def use() -> None:
        async with limiter:
            lost = await asyncio.to_thread(loop.run_until_complete, join())
            loop.close()
            next_one = Job(limiter)
            await _turns()
            assert limiter.waiting == 2
        while not next_one.inside:
            await asyncio.sleep(0.001)
        assert (limiter.active, limiter.waiting) == (1, 0)
        await _finish(next_one)
        lost.get_coro().close()
        assert (limiter.active, limiter.waiting) == (0, 0)

    asyncio.run(use())


def test_abandoned_coroutines_leave_their_places_when_they_are_collected() -> None:
    limiter = Limiter(2)

    async def hold() -> None:
        async with limiter:
            await asyncio.Event().wait()

    async def use() -> None:
        held, waiting = hold(), hold()
        held.send(None)
        async with limiter:
            waiting.send(None)
            assert (limiter.active, limiter.waiting) == (2, 1)
            with limiter._lock:  # The collector comes whenever it likes.
                del waiting
                gc.collect()
                assert (limiter.active, limiter.waiting) == (2, 0)
                del held
                gc.collect()
            assert limiter.active == 1
        assert limiter.active == 0

    asyncio.run(use())


@pytest.mark.parametrize("number", [0, -1, 1.5, True, None, "3"])
def test_a_number_of_places_that_is_none_is_refused(number: Any) -> None:
    with pytest.raises(BackendError, match=r"max_concurrency is .*; allowed: a whole number of at least 1"):
        Limiter(number)
    with pytest.raises(BackendError, match="max_concurrency is"):
        Limited(ScriptedBackend(["a"]), number)


@pytest.mark.parametrize("number", [-1, 1.5, False, "3"])
def test_a_queue_that_is_none_is_refused(number: Any) -> None:
    with pytest.raises(BackendError, match=r"max_queue is .*; allowed: a whole number of at least 0, or None"):
        Limiter(1, max_queue=number)


class _Watched(ScriptedBackend):
    """Knows how many calls of all its kind are under way."""

    def __init__(self, gauge: dict[str, int]) -> None:
        super().__init__(["one two three", "four"])
        self._gauge = gauge

    async def begin(self, *args: Any, **kwargs: Any) -> Any:
        await self._work()
        return await super().begin(*args, **kwargs)

    async def _work(self) -> None:
        self._gauge["now"] += 1
        self._gauge["most"] = max(self._gauge["most"], self._gauge["now"])
        await _turns()
        self._gauge["now"] -= 1


async def test_all_calls_of_a_backend_take_places() -> None:
    gauge = {"now": 0, "most": 0}
    backend = Limited(_Watched(gauge), 3)
    start = await backend.begin("a question", max_tokens=4, params=PLAIN)
    ((drawn,),) = await backend.rollout([start], 1, seed=0)
    calls: dict[str, Callable[[], Any]] = {
        "begin": lambda: backend.begin("a question", max_tokens=4, params=PLAIN),
        "extend": lambda: backend.extend(start, 1, tokens=1, seed=0),
        "rollout": lambda: backend.rollout([start], 1, seed=0),
        "score": lambda: backend.score([start], [[drawn]]),
    }
    for name, call in calls.items():
        gauge["most"] = 0
        await asyncio.gather(*(call() for _ in range(8)))
        assert gauge["most"] == 3, name
    assert backend.limiter.active == 0


async def test_backends_may_share_places() -> None:
    gauge, limiter = {"now": 0, "most": 0}, Limiter(2)
    backends = [Limited(_Watched(gauge), limiter) for _ in range(3)]
    starts = [await backend.begin("a question", max_tokens=4, params=PLAIN) for backend in backends]
    calls = [b.rollout([s], 1, seed=0) for b, s in zip(backends, starts, strict=True) for _ in range(4)]
    await asyncio.gather(*calls)
    assert gauge["most"] == 2


async def test_closing_takes_no_place() -> None:
    limiter = Limiter(1, max_queue=0)
    async with limiter, Limited(ScriptedBackend(["a"]), limiter) as backend:
        await backend.aclose()


class Interrupted(Limiter):
    """Has something happen in the midst of its work, as when the garbage collector closes abandoned coroutines."""

    def __init__(self, places: int) -> None:
        super().__init__(places)
        self.meanwhile: list[Callable[[], None]] = []

    def _take(self, size: int) -> bool:
        if self.meanwhile:
            self.meanwhile.pop()()
        taken = super()._take(size)
        if self.meanwhile:
            self.meanwhile.pop()()
        return taken


def _abandoned(limiter: Limiter) -> Coroutine[Any, Any, None]:
    """Return a wait that nobody goes on with."""
    wait = limiter.__aenter__()
    wait.send(None)
    return wait


@pytest.mark.parametrize("before", [True, False])
async def test_a_wait_that_is_collected_while_it_is_let_in_takes_no_place(before: bool) -> None:
    limiter = Interrupted(1)
    async with limiter:
        lost = [_abandoned(limiter), _abandoned(limiter)]
        job = Job(limiter)
        await _turns()
        steps: list[Callable[[], None]] = [lost[0].close, lambda: None]
        limiter.meanwhile = steps[::-1] if before else steps  # The last one comes first.
    await _turns()
    lost[1].close()
    await _turns()
    assert (job.inside, limiter.active, limiter.waiting) == (True, 1, 0)
    await _finish(job)
    assert (limiter.active, limiter.waiting) == (0, 0)


async def test_a_place_that_is_given_back_while_nobody_could_be_let_in_is_not_forgotten() -> None:
    limiter = Interrupted(1)
    await limiter.__aenter__()
    first = Job(limiter)
    await _turns()
    limiter.meanwhile = [limiter._leave, lambda: None]
    second = Job(limiter)
    await _turns()
    assert first.inside
    await _finish(first, second)
    assert (limiter.active, limiter.waiting) == (0, 0)


@pytest.mark.parametrize("kind", ["vllm", "completions_no_n"])
@pytest.mark.parametrize(("max_queue", "runs"), [(0, 1), (0, 6), (1, 6), (3, 6)])
async def test_an_endpoint_finishes_the_responses_that_it_has_begun(kind: Any, max_queue: int, runs: int) -> None:
    with FakeServer(ScriptedModel([f"w{i} a b c d e f g h{i}" for i in range(20)]), profile=kind) as server:
        limiter = Limiter(2, max_queue=max_queue)
        async with await OpenAIBackend.connect("scripted", server.base_url, max_concurrency=limiter) as backend:
            ets = ETS(backend, "self_consistency", num_candidates=8, num_rollouts=2, num_steps=3, max_tokens=9)
            known = server.records.total
            results = await ets.complete_many(["q?"] * runs, concurrency=runs, seed=0, num_chains=2, timeout=60)
    refused = [result for result in results if isinstance(result, QueueFullError)]
    assert len([result for result in results if isinstance(result, Result)]) == runs - len(refused)
    # With vLLM, to begin is a request, and all ask for it before the first one is answered. Elsewhere it is none, so
    # that only those are refused that begin later than the others have asked for something.
    most = max(0, runs - 2 - max_queue)
    assert len(refused) == most if kind == "vllm" else len(refused) <= most
    assert len([one for one in server.records.all()[known:] if one.path == "/tokenize"]) == (
        runs - len(refused) if kind == "vllm" else 0
    )
    assert (limiter.active, limiter.waiting) == (0, 0)


@pytest.mark.parametrize("kind", ["vllm", "completions", "completions_no_n", "chat"])
async def test_an_endpoint_without_a_free_place_begins_nothing_and_goes_on_later(kind: Any) -> None:
    with FakeServer(ScriptedModel(["one two three four"]), profile=kind) as server:
        limiter = Limiter(2, max_queue=0)
        async with await OpenAIBackend.connect("scripted", server.base_url, max_concurrency=limiter) as backend:
            start = await backend.begin("q?", max_tokens=4, params=PLAIN)
            async with limiter, limiter:
                with pytest.raises(QueueFullError):
                    await backend.begin("q?", max_tokens=4, params=PLAIN)
                drawing = asyncio.create_task(backend.rollout([start, start], 3, seed=0))
                await _turns()
                assert limiter.waiting == 1
            assert [len(group) for group in await drawing] == [3, 3]


async def test_one_limiter_around_a_backend_and_within_it_is_refused() -> None:
    limiter = Limiter(1)
    pool = Pool([Limited(ScriptedBackend(["x"]), 1), Limited(ScriptedBackend(["x"]), limiter)])
    with FakeServer(ScriptedModel(["x"])) as server:
        async with await OpenAIBackend.connect("scripted", server.base_url, max_concurrency=limiter) as endpoint:
            for within in (pool, endpoint):
                with pytest.raises(BackendError, match="within has the same limiter"):
                    Limited(within, limiter)
                assert Limited(within, Limiter(1)).inner is within
