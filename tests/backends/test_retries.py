from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from backends import (
    BackendError,
    Completion,
    EndpointError,
    Prompt,
    PromptError,
    QueueFullError,
    SamplingParams,
    State,
    retries,
)
from backends.retries import Retrying, RetryPolicy
from backends.scripted import ScriptedBackend
from backends.wrapper import BackendWrapper
from tests.virtual_time import now, timeless

Outcome = Callable[[], Awaitable[Any]]


class Script:
    """Fails or succeeds as it is told, and notes when it was called."""

    def __init__(self, *outcomes: Any, seconds: float = 0.0) -> None:
        self.outcomes = list(outcomes)
        self.seconds = seconds
        self.times: list[float] = []

    async def __call__(self) -> Any:
        self.times.append(now())
        outcome = self.outcomes[min(len(self.times), len(self.outcomes)) - 1]
        await asyncio.sleep(self.seconds)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    @property
    def waits(self) -> list[float]:
        ends = [start + self.seconds for start in self.times]
        return [start - end for start, end in zip(self.times[1:], ends, strict=False)]


def busy(retry_after: float | None = None) -> EndpointError:
    return EndpointError("POST /v1: 503", status=503, retryable=True, retry_after=retry_after)


class _ForeignError(Exception):
    retryable = True


@pytest.fixture
def longest_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Longest(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    monkeypatch.setattr(retries, "_jitter", Longest())


@timeless
async def test_what_succeeds_at_once_is_asked_once() -> None:
    script = Script("answer")
    assert await RetryPolicy().call(script, what="POST /v1") == "answer"
    assert script.times == [0.0]


@timeless
async def test_a_failure_that_may_pass_is_tried_again_until_it_has_passed() -> None:
    script = Script(busy(), busy(), "answer")
    assert await RetryPolicy().call(script, what="POST /v1") == "answer"
    assert len(script.times) == 3


@pytest.mark.usefixtures("longest_waits")
@timeless
async def test_the_longest_wait_doubles_up_to_its_bound() -> None:
    script = Script(busy())
    with pytest.raises(EndpointError):
        await RetryPolicy(attempts=7, first_delay=0.5, longest_delay=6.0).call(script, what="POST /v1")
    assert script.waits == [0.5, 1.0, 2.0, 4.0, 6.0, 6.0]


@timeless
async def test_waits_are_drawn_evenly_from_nothing_to_the_longest() -> None:
    waits = []
    for _ in range(400):
        script = Script(busy(), "answer")
        await RetryPolicy(first_delay=1.0).call(script, what="POST /v1")
        waits += script.waits
    assert 0 <= min(waits) < 0.1
    assert 0.9 < max(waits) <= 1
    assert 0.4 < sum(waits) / len(waits) < 0.6


@timeless
async def test_thousands_of_tries_overflow_nothing() -> None:
    script = Script(busy())
    with pytest.raises(EndpointError, match="gave up after 3000 tries"):
        await RetryPolicy(attempts=3000, first_delay=1e-6, longest_delay=1e-3, deadline=None).call(script, what="POST")
    assert max(script.waits) <= 1.1e-3


@timeless
async def test_random_numbers_of_the_program_are_left_alone() -> None:
    random.seed(1)
    before = random.getstate()
    await RetryPolicy().call(Script(busy(), busy(), "answer"), what="POST /v1")
    assert random.getstate() == before


@pytest.mark.parametrize(
    "error",
    [
        EndpointError("POST /v1: 401", status=401),
        PromptError("empty"),
        QueueFullError("full"),
        KeyError("a bug"),
        _ForeignError("another library's"),
        TimeoutError("somebody's own"),
        SystemExit(),
    ],
    ids=repr,
)
@timeless
async def test_what_will_fail_again_is_raised_as_it_is(error: BaseException) -> None:
    for before in ([], [busy()]):
        script = Script(*before, error)
        with pytest.raises(type(error)) as caught:
            await RetryPolicy().call(script, what="POST /v1")
        assert caught.value is error
        assert len(script.times) == len(before) + 1


@timeless
async def test_any_backend_error_may_say_that_it_can_be_retried() -> None:
    class EvictedError(BackendError):
        retryable = True

    assert await RetryPolicy().call(Script(EvictedError("the replica is gone"), "answer"), what="extend") == "answer"


@timeless
async def test_giving_up_tells_tries_and_seconds_and_keeps_what_the_error_knew() -> None:
    last = busy(retry_after=1.5)
    with pytest.raises(EndpointError) as caught:
        await RetryPolicy(attempts=3, first_delay=0).call(Script(busy(), busy(2.0), last, seconds=1), what="POST /v1")
    error = caught.value
    assert str(error) == "POST /v1: 503 (gave up after 3 tries in 5.0 s)"
    assert (error.status, error.retryable, error.retry_after) == (503, False, 1.5)
    assert error.__cause__ is last
    assert last.retryable, "the error itself is not changed"


@timeless
async def test_one_try_is_called_one() -> None:
    with pytest.raises(EndpointError, match=r"503 \(gave up after 1 try in 0\.0 s\)$"):
        await RetryPolicy(attempts=1).call(Script(busy()), what="POST /v1")


@timeless
async def test_errors_of_any_make_keep_their_type() -> None:
    class OddError(EndpointError, ImportError):
        def __init__(self, *, code: int) -> None:
            super().__init__(f"code {code}", retryable=True)
            self.code = code

    with pytest.raises(OddError, match=r"^code 7 \(gave up after 2 tries") as caught:
        await RetryPolicy(attempts=2).call(Script(OddError(code=7)), what="POST /v1")
    assert (caught.value.code, caught.value.retryable) == (7, False)


@timeless
async def test_nothing_above_tries_again_what_was_given_up() -> None:
    script = Script(busy())
    inner = RetryPolicy(attempts=3)

    async def outer() -> Any:
        return await inner.call(script, what="POST /v1")

    with pytest.raises(EndpointError):
        await RetryPolicy(attempts=5).call(outer, what="extend")
    assert len(script.times) == 3


@timeless
async def test_the_server_is_not_asked_before_it_wants_to_be() -> None:
    script = Script(busy(retry_after=30.0), busy(retry_after=25.0), "answer")
    assert await RetryPolicy(first_delay=0.5, longest_delay=1.0).call(script, what="POST /v1") == "answer"
    assert 30 <= script.waits[0] <= 30.5
    assert 25 <= script.waits[1] <= 26
    assert script.waits[0] > 30, "those who were all told the same must not all come at once"


@timeless
async def test_a_wait_that_the_server_wants_beyond_the_deadline_is_not_begun() -> None:
    script = Script(busy(), busy(retry_after=60.0))
    with pytest.raises(EndpointError) as caught:
        await RetryPolicy(deadline=60.0, first_delay=0.0).call(script, what="POST /v1")
    assert now() == 0
    assert str(caught.value) == (
        "POST /v1: 503 (gave up after 2 tries in 0.0 s: the server asks for a wait of 60 s, and the deadline is 60 s)"
    )
    assert caught.value.retry_after == 60


@timeless
async def test_a_wait_just_before_the_deadline_leaves_one_more_try() -> None:
    script = Script(busy(retry_after=59.0), "answer")
    assert await RetryPolicy(deadline=60.0, first_delay=50.0, longest_delay=50.0).call(script, what="POST") == "answer"
    assert 59 <= script.times[1] <= 60


@pytest.mark.parametrize("wish", [math.nan, -3.0, 0.0, None])
@timeless
async def test_wishes_that_make_no_sense_are_none(wish: float | None) -> None:
    script = Script(busy(retry_after=wish), "answer")
    await RetryPolicy(first_delay=0.5).call(script, what="POST /v1")
    assert 0 <= script.waits[0] <= 0.5


@timeless
async def test_without_a_deadline_a_long_wait_is_waited_but_not_an_endless_one() -> None:
    script = Script(busy(retry_after=86400.0), busy(retry_after=math.inf))
    with pytest.raises(EndpointError, match=r"after 2 tries in 864\d\d\.\d s: the server asks for a wait of inf s\)"):
        await RetryPolicy(deadline=None).call(script, what="POST /v1")


@timeless
async def test_a_try_that_hangs_is_cut_off_at_the_deadline() -> None:
    ended = []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(now())

    with pytest.raises(EndpointError) as caught:
        await RetryPolicy(deadline=10.0).call(hang, what="POST /v1")
    assert ended == [10.0]
    assert str(caught.value) == "POST /v1: no answer within the deadline of 10 s (gave up after 1 try in 10.0 s)"
    assert not caught.value.retryable
    current = asyncio.current_task()
    assert current is not None
    assert not current.cancelling()


@timeless
async def test_a_try_that_is_cut_off_is_the_last_one_also_where_the_event_loop_is_early() -> None:
    """It takes a timer for due that is so within the resolution of its clock; here, rounding brings it there."""
    began, deadline = 0.2, 0.9
    assert began + (deadline - began) < deadline
    tries = []

    async def hang_in_the_end() -> None:
        tries.append(now())
        if len(tries) == 1:
            await asyncio.sleep(began)
            raise busy()
        await asyncio.Event().wait()

    with pytest.raises(EndpointError, match="no answer within the deadline") as caught:
        await RetryPolicy(deadline=deadline, first_delay=0.0).call(hang_in_the_end, what="POST /v1")
    assert tries == [0.0, began]
    assert "gave up after 2 tries" in str(caught.value)


@timeless
async def test_a_hang_after_a_failure_tells_of_both() -> None:
    async def second() -> Any:
        await asyncio.Event().wait()

    outcomes: Iterator[Outcome] = iter([Script(busy()), second])
    with pytest.raises(EndpointError) as caught:
        await RetryPolicy(deadline=10.0).call(lambda: next(outcomes)(), what="POST /v1")
    assert str(caught.value) == (
        "POST /v1: no answer within the deadline of 10 s; the try before failed: POST /v1: 503 "
        "(gave up after 2 tries in 10.0 s)"
    )


@timeless
async def test_an_answer_that_comes_at_the_last_moment_counts() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "answer"
        raise AssertionError

    assert await RetryPolicy(deadline=10.0).call(stubborn, what="POST /v1") == "answer"


@timeless
async def test_a_failure_at_the_deadline_is_the_last_one() -> None:
    tries = []

    async def converting() -> None:
        tries.append(now())
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise busy() from None

    with pytest.raises(EndpointError, match=r"^POST /v1: 503 \(gave up after 1 try in 10\.0 s\)$"):
        await RetryPolicy(deadline=10.0).call(converting, what="POST /v1")
    assert tries == [0.0]


@pytest.mark.parametrize("moment", [1.0, 4.0], ids=["during a try", "during a wait"])
@pytest.mark.usefixtures("longest_waits")
@timeless
async def test_a_cancelled_caller_is_cancelled(moment: float) -> None:
    script = Script(busy(), "answer", seconds=2.0)
    task = asyncio.create_task(RetryPolicy(first_delay=5.0).call(script, what="POST /v1"))
    await asyncio.sleep(moment)
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert now() == moment
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("moment", [1.0, 4.0], ids=["during a try", "during a wait"])
@pytest.mark.usefixtures("longest_waits")
@timeless
async def test_a_timeout_of_the_callers_is_a_timeout(moment: float) -> None:
    script = Script(busy(), "answer", seconds=2.0)
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(moment):
            await RetryPolicy(first_delay=5.0).call(script, what="POST /v1")
    assert not isinstance(caught.value, BackendError)
    assert now() == moment


@timeless
async def test_cancelling_at_the_deadline_is_still_cancelling() -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(RetryPolicy(deadline=10.0).call(hang, what="POST /v1"))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_at(10.0, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task


@timeless
async def test_requests_at_once_do_not_mix() -> None:
    async def ask(number: int) -> Any:
        failures: list[Any] = [busy()] * (number % 5)
        return await RetryPolicy().call(Script(*failures, number, seconds=0.1 * number), what=f"request {number}")

    assert await asyncio.gather(*map(ask, range(20))) == list(range(20))


@pytest.mark.usefixtures("longest_waits")
@timeless
async def test_each_retry_is_logged_with_what_failed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="backends.retries"):
        await RetryPolicy(first_delay=0.7).call(Script(busy(), busy(), "answer"), what="POST /v1 [7]")
    assert [record.getMessage() for record in caplog.records] == [
        "POST /v1 [7] failed: POST /v1: 503; trying again in 0.7 s",
        "POST /v1 [7] failed: POST /v1: 503; trying again in 1.4 s",
    ]
    assert {record.levelno for record in caplog.records} == {logging.INFO}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attempts": 0}, "attempts is 0; allowed: a whole number of at least 1"),
        ({"attempts": 2.5}, "attempts is 2.5; allowed"),
        ({"attempts": True}, "attempts is True; allowed"),
        ({"first_delay": -0.1}, "first_delay is -0.1; allowed: a finite number of at least 0"),
        ({"first_delay": True}, "first_delay is True"),
        ({"first_delay": math.nan}, "first_delay is nan"),
        ({"longest_delay": math.inf}, "longest_delay is inf"),
        ({"longest_delay": "2"}, "longest_delay is '2'"),
        ({"deadline": 0}, "deadline is 0; allowed: a finite number above 0"),
        ({"deadline": math.inf}, "deadline is inf"),
        ({"deadline": False}, "deadline is False"),
        ({"deadline": "10"}, "deadline is '10'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        RetryPolicy(**settings)


def test_policies_are_values() -> None:
    assert RetryPolicy(attempts=2) == RetryPolicy(attempts=2)
    assert len({RetryPolicy(), RetryPolicy(), RetryPolicy(deadline=None)}) == 2


@hypothesis.given(
    tries=st.lists(st.tuples(st.booleans(), st.floats(0, 8), st.none() | st.floats(0, 12)), min_size=1, max_size=8),
    attempts=st.integers(1, 6),
    deadline=st.none() | st.floats(0.5, 30),
)
def test_no_request_exceeds_its_tries_or_its_deadline(
    tries: list[tuple[bool, float, float | None]], attempts: int, deadline: float | None
) -> None:
    """Whatever a server does: so many tries, so many seconds, then an answer or an error that says it is final."""

    @timeless
    async def check() -> None:
        starts: list[float] = []
        ends: list[float] = []

        async def answer() -> str:
            fails, seconds, _ = tries[min(len(starts), len(tries) - 1)]
            wish = tries[min(len(starts), len(tries) - 1)][2]
            starts.append(now())
            await asyncio.sleep(seconds)
            ends.append(now())
            if fails:
                raise busy(wish)
            return "answer"

        policy = RetryPolicy(attempts=attempts, deadline=deadline, first_delay=1.0, longest_delay=3.0)
        error = None
        try:
            assert await policy.call(answer, what="POST /v1") == "answer"
        except EndpointError as caught:
            error = caught
        assert error is None or not error.retryable
        assert error is None or f"gave up after {len(starts)} tr" in str(error)
        assert 1 <= len(starts) <= attempts
        if deadline is not None:
            assert now() <= deadline + 1e-6
            assert max(starts) <= deadline + 1e-6
        for index, start in enumerate(starts[1:]):
            assert start - ends[index] >= (tries[min(index, len(tries) - 1)][2] or 0) - 1e-6

    check()


class _Flaky(BackendWrapper):
    """Fails as often as it is told before each success."""

    def __init__(self, failures: int) -> None:
        super().__init__(ScriptedBackend(["one two three", "four five"]))
        self.failures = failures
        self.calls: list[str] = []

    async def _maybe(self, call: str) -> None:
        self.calls.append(call)
        if self.calls.count(call) <= self.failures:
            raise busy()

    async def begin(self, prompt: Prompt, *, max_tokens: int, params: SamplingParams) -> State:
        await self._maybe("begin")
        return await super().begin(prompt, max_tokens=max_tokens, params=params)

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        await self._maybe("extend")
        return await super().extend(state, n, tokens=tokens, seed=seed)

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        await self._maybe("rollout")
        return await super().rollout(states, n, seed=seed)

    async def score(self, states: Sequence[State], completions: Sequence[Sequence[Completion]]) -> list[list[float]]:
        await self._maybe("score")
        return await super().score(states, completions)


async def _run(backend: Any) -> tuple[Any, ...]:
    start = await backend.begin("a question", max_tokens=5, params=SamplingParams())
    states = await backend.extend(start, 3, tokens=1, seed=1)
    drawn = await backend.rollout(states, 2, seed=2)
    texts = [[completion.text for completion in group] for group in drawn]
    return [state.text for state in states], texts, await backend.score(states, drawn)


@timeless
async def test_every_call_of_a_backend_is_tried_again_and_draws_the_same() -> None:
    flaky = _Flaky(2)
    assert await _run(Retrying(flaky)) == await _run(_Flaky(0))
    assert flaky.calls == [call for call in ("begin", "extend", "rollout", "score") for _ in range(3)]


@timeless
async def test_a_backend_that_keeps_failing_ends_in_its_own_error() -> None:
    flaky = _Flaky(99)
    with pytest.raises(EndpointError, match=r"gave up after 2 tries"):
        await _run(Retrying(flaky, RetryPolicy(attempts=2)))
    assert flaky.calls == ["begin"] * 2


@timeless
async def test_messages_name_the_call_and_the_model(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="backends.retries"):
        await _run(Retrying(_Flaky(1)))
    assert [record.getMessage().split(" failed")[0] for record in caplog.records] == [
        f"{call} of scripted" for call in ("begin", "extend", "rollout", "score")
    ]
