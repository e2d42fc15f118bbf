"""Closing what was built for a run, across event loops that come and go."""

from __future__ import annotations

import asyncio
import threading

import pytest

from ets_agent import RunningLoopError
from ets_agent._closing import PATIENCE, Closing


class Slow:
    """Takes longer to close than anybody waits for it."""

    def __init__(self, seconds: float = 3 * PATIENCE) -> None:
        self.seconds = seconds
        self.closed = False

    async def aclose(self) -> None:
        await asyncio.sleep(self.seconds)
        self.closed = True


async def test_closing_goes_on_after_the_answer_and_is_waited_for() -> None:
    closing, thing = Closing(), Slow()
    await closing.close(thing)
    assert not thing.closed
    await closing.wait()
    assert thing.closed


def test_what_was_left_in_an_event_loop_that_ended_is_not_waited_for() -> None:
    closing, thing = Closing(), Slow(seconds=60)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(closing.close(thing))
    asyncio.run(asyncio.wait_for(closing.wait(), 10))
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    asyncio.run(asyncio.wait_for(closing.wait(), 10))
    assert not thing.closed


def test_what_another_running_event_loop_closes_is_waited_for() -> None:
    closing, thing = Closing(), Slow()
    begun = threading.Event()

    async def there() -> None:
        await closing.close(thing)
        begun.set()
        await closing.wait()

    thread = threading.Thread(target=lambda: asyncio.run(there()))
    thread.start()
    assert begun.wait(10)
    asyncio.run(asyncio.wait_for(closing.wait(), 10))
    assert thing.closed
    thread.join()


async def test_a_blocking_call_does_not_wait_for_what_other_event_loops_close() -> None:
    closing, thing = Closing(), Slow(seconds=60)
    await closing.close(thing)
    blocking = asyncio.to_thread(closing.run, asyncio.sleep(0, "done"), blocking="f", instead="await g()")
    assert await asyncio.wait_for(blocking, 10) == "done"
    assert not thing.closed


def test_a_blocking_call_ends_when_all_is_closed() -> None:
    closing, thing = Closing(), Slow()

    async def work() -> str:
        await closing.close(thing)
        return "done"

    assert closing.run(work(), blocking="f", instead="await g()") == "done"
    assert thing.closed


async def test_a_blocking_call_is_refused_in_an_event_loop() -> None:
    with pytest.raises(RunningLoopError, match=r"f would block the running event loop: use 'await g\(\)' here"):
        Closing().run(asyncio.sleep(0), blocking="f", instead="await g()")
