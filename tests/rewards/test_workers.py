from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rewards import RewardError, RewardSpecError, RewardTimeoutError
from rewards.workers import Workers
from tests.standstill import again_after_a_standstill


def double(number: int) -> int:
    return 2 * number


def burn() -> None:
    while True:
        pass


def noisy() -> str:
    print("not a reply", flush=True)
    return sys.stdin.read()


@pytest.fixture
async def make() -> AsyncIterator[Any]:
    """Makes workers, which are closed when the test is over."""
    made: list[Workers] = []

    def workers(function: Any, **options: Any) -> Workers:
        made.append(Workers(function, **{"size": 1, "name": "work", **options}))
        return made[-1]

    yield workers
    for each in made:
        each.close()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def _gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while _alive(pid):
            await asyncio.sleep(0.01)


async def test_calls_share_processes(make: Any) -> None:
    workers = make(double, size=2)
    assert await asyncio.gather(*(workers.call(n) for n in range(20))) == [2 * n for n in range(20)]
    assert len(workers._processes) <= 2
    pids = make("os:getpid")
    assert await pids.call() == await pids.call() != os.getpid()


async def test_errors_come_back_as_reward_errors(make: Any) -> None:
    workers = make(double)
    with pytest.raises(RewardError, match="work failed: TypeError: "):
        await workers.call()
    assert await workers.call(4) == 8


@pytest.mark.parametrize("target", ["no_such_module:f", "os:no_such_name", "os:sep"])
async def test_what_cannot_be_imported_is_an_error_of_the_call(make: Any, target: str) -> None:
    with pytest.raises(RewardError, match=target.partition(":")[2]):
        await make(target).call()


def test_functions_need_a_name() -> None:
    def local() -> None: ...

    for function in (local, lambda: None):
        with pytest.raises(RewardSpecError, match=r"reward 'mine' cannot run in a process.*top level of a module"):
            Workers(function, size=1, name="reward 'mine'")


async def test_what_is_printed_is_no_reply_and_stdin_is_empty(make: Any) -> None:
    assert await make(noisy).call() == ""


async def test_time_limits_kill(make: Any) -> None:
    sleeper, burner = make("time:sleep", seconds=0.2), make(burn, cpu_seconds=0.2)
    with pytest.raises(RewardTimeoutError, match=r"work took longer than 0.2 s$"):
        await sleeper.call(60)
    with pytest.raises(RewardTimeoutError, match=r"work took longer than 0.2 s of processor time"):
        await burner.call()
    sleeper._limits["seconds"] = 60
    assert await sleeper.call(0) is None


@again_after_a_standstill
async def test_the_wait_for_a_process_does_not_count(make: Any) -> None:
    sleeper = make("time:sleep", seconds=0.5)
    assert await asyncio.gather(*(sleeper.call(0.2) for _ in range(4))) == [None] * 4


async def test_memory_is_limited(make: Any) -> None:
    with pytest.raises(RewardError, match="MemoryError"):
        await make("builtins:bytearray", memory=1 << 30).call(2 << 30)


async def test_a_process_that_dies_costs_one_call(make: Any) -> None:
    workers = make("os:_exit")
    with pytest.raises(RewardError, match=r"its process died \(exit status 3\)"):
        await workers.call(3)
    with pytest.raises(RewardError, match=r"its process died \(exit status 4\)"):
        await workers.call(4)


async def test_an_idle_process_that_was_killed_costs_nobody_anything(make: Any) -> None:
    workers = make("os:getpid")
    pid = await workers.call()
    os.kill(pid, signal.SIGKILL)
    assert await workers.call() != pid


def disarm(seconds: float) -> None:
    signal.alarm(0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    time.sleep(seconds)


async def test_no_function_can_switch_its_limit_off(make: Any) -> None:
    began = time.perf_counter()
    with pytest.raises(RewardTimeoutError):
        await make(disarm, seconds=0.3).call(60)
    assert time.perf_counter() - began < 30


async def test_cancelling_a_call_kills_its_process_alone(make: Any) -> None:
    workers = make("time:sleep", size=2)
    hung = asyncio.create_task(workers.call(60))
    while not workers._processes:
        await asyncio.sleep(0.01)
    (process,) = workers._processes
    other = asyncio.create_task(workers.call(0.3))
    await asyncio.sleep(0.1)
    hung.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hung
    await _gone(process.pid)
    assert await other is None


async def test_closing_kills_and_can_be_undone(make: Any) -> None:
    workers = make("os:getpid")
    pid = await workers.call()
    workers.close()
    workers.close()
    await _gone(pid)
    assert await workers.call() != pid


@pytest.mark.parametrize("size", [1, 2, 4])
@again_after_a_standstill
async def test_idle_processes_end_and_are_replaced(make: Any, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("rewards.workers.IDLE_SECONDS", 0.1)
    workers = make("time:sleep", size=size)
    for _ in range(3):
        await asyncio.gather(*(workers.call(0.05) for _ in range(size)))
        for process in list(workers._processes):  # All of them are gone, and the next call finds none that is left.
            await _gone(process.pid)


def test_several_event_loops_one_after_another() -> None:
    workers = Workers(double, size=1, name="work")
    assert [asyncio.run(workers.call(n)) for n in range(3)] == [0, 2, 4]
    workers.close()


def test_forgotten_workers_leave_no_process() -> None:
    workers = Workers("os:getpid", size=1, name="work")
    pid = asyncio.run(workers.call())
    del workers
    asyncio.run(_gone(pid))  # Its thread may hold it for a moment longer.


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the children of a killed process on Linux only")
def test_a_kill_of_this_process_takes_a_hung_call_with_it() -> None:
    program = (
        "import asyncio, threading, time\n"
        "from rewards.workers import Workers\n"
        "workers = Workers('time:sleep', size=1, name='work')\n"
        "def tell():\n"
        "    while not workers._ready: time.sleep(0.01)\n"
        "    print(*[p.pid for p in workers._ready], flush=True)\n"
        "threading.Thread(target=tell).start()\n"
        "asyncio.run(workers.call(600))\n"
    )
    host = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    pid = int(host.stdout.readline())
    assert _alive(pid)
    host.send_signal(signal.SIGKILL)
    host.wait()
    host.stdout.close()
    asyncio.run(_gone(pid))


def test_a_script_without_a_main_guard_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import asyncio\nfrom rewards.workers import Workers\nprint('once')\n"
        "print(asyncio.run(Workers('operator:add', size=1, name='work').call(1, 2)))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("once\n3\n", "")
