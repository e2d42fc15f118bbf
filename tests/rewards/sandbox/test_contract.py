"""What every sandbox promises, tried on each that works here."""

from __future__ import annotations

import asyncio
import gc
import glob
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from rewards.sandbox import Limits, Sandbox, SandboxError
from rewards.sandbox.base import MIB
from tests.rewards.sandbox.leftovers import Leftovers

_FOREVER = "import time\ntime.sleep(1000)"


async def test_a_program_gets_arguments_and_input_and_gives_output_and_status(sandbox: Sandbox) -> None:
    program = "import sys\nprint(sys.argv[1:], sys.stdin.read())\nprint('oh', file=sys.stderr)\nsys.exit(3)"
    execution = await sandbox.run(program, "a b", "é", stdin=b"in" * 100_000)
    assert execution.stdout.decode() == f"['a b', 'é'] {'in' * 100_000}\n"
    assert execution.stderr == "oh"
    assert execution.returncode == 3
    assert not execution.timed_out
    assert not execution.overflowed
    assert 0 < execution.seconds < 10


async def test_input_that_nobody_reads_does_no_harm(sandbox: Sandbox) -> None:
    execution = await sandbox.run("print(1)", stdin=b"x" * 5_000_000)
    assert execution.stdout == b"1\n"


async def test_a_program_that_takes_too_long_is_killed(sandbox: Sandbox, leftovers: Leftovers) -> None:
    began = time.monotonic()
    execution = await sandbox.run(_FOREVER, limits=leftovers.limits(wall_seconds=0.3))
    assert execution.timed_out
    assert execution.returncode != 0
    assert time.monotonic() - began < 30
    leftovers.check()


async def test_a_program_that_says_all_but_does_not_end_is_killed(sandbox: Sandbox, leftovers: Leftovers) -> None:
    program = f"import os\nos.write(1, b'done')\nos.close(1)\nos.close(2)\n{_FOREVER}"
    execution = await sandbox.run(program, limits=leftovers.limits(wall_seconds=1))
    assert execution.timed_out
    assert execution.stdout == b"done"
    leftovers.check()


async def test_a_program_that_says_too_much_is_killed(sandbox: Sandbox, leftovers: Leftovers) -> None:
    program = "import sys\nwhile True: sys.{}.write('x' * 1000)"
    execution = await sandbox.run(program.format("stdout"), limits=leftovers.limits(output_bytes=1000))
    assert execution.overflowed
    assert len(execution.stdout) == 1000
    leftovers.check()
    execution = await sandbox.run(program.format("stderr"), limits=leftovers.limits(wall_seconds=0.5))
    assert execution.timed_out, "of stderr only the end is kept"
    assert len(execution.stderr) <= 4096
    leftovers.check()


@pytest.mark.parametrize(
    ("program", "limits"),
    [
        ("bytearray(100 * 2**20)", Limits(memory_bytes=64 * MIB)),
        ("while True: pass", Limits(cpu_seconds=1, wall_seconds=60)),
        ("open('big', 'wb').write(bytes(2**21))", Limits(file_bytes=MIB)),
        ("files = [open('/dev/null') for _ in range(100)]", Limits(open_files=32)),
    ],
)
async def test_limits_hold(sandbox: Sandbox, program: str, limits: Limits) -> None:
    execution = await sandbox.run(program, limits=limits)
    assert execution.returncode != 0
    assert not execution.timed_out


async def test_what_a_program_leaves_running_is_killed_with_it(sandbox: Sandbox, leftovers: Leftovers) -> None:
    program = f"import os, sys\nif os.fork():\n    print(1)\n    sys.exit()\n{_FOREVER}"
    execution = await sandbox.run(program, limits=leftovers.limits())
    assert execution.stdout == b"1\n"
    assert execution.returncode == 0
    leftovers.check()


async def test_files_of_a_run_are_gone_with_it(sandbox: Sandbox, leftovers: Leftovers) -> None:
    program = (  # The interpreter may be somewhere in /tmp, and its folders then are, too.
        "import os\nprint([name for name in os.listdir() if 'hostile' in name])\n"
        "open('hostile-file', 'w').close()\nos.makedirs('hostile-folder/a')"
    )
    assert (await sandbox.run(program)).stdout == b"[]\n"
    assert (await sandbox.run(program)).stdout == b"[]\n"
    leftovers.check()


async def test_the_environment_is_empty(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    execution = await sandbox.run("import os\nprint(dict(os.environ))")
    assert b"s3cret" not in execution.stdout
    assert b"HOME" not in execution.stdout or sandbox.name == "docker"


async def test_a_failure_of_the_program_is_no_failure_of_the_sandbox(sandbox: Sandbox) -> None:
    for program in ("def", "import os\nos._exit(9)", "import os\nos.abort()", "raise SystemExit('bye')"):
        execution = await sandbox.run(program)
        assert execution.returncode not in (0, None)


async def test_a_program_that_cannot_be_passed_on_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxError, match="KiB"):
        await sandbox.run("#" * 200_000)


async def test_a_cancelled_run_has_ended_before_the_cancellation_goes_on(
    sandbox: Sandbox, leftovers: Leftovers
) -> None:
    task = asyncio.create_task(sandbox.run(_FOREVER, limits=leftovers.limits(wall_seconds=1000)))
    while not leftovers.processes():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    leftovers.check()


async def test_a_run_cancelled_at_any_moment_leaves_nothing(
    sandbox: Sandbox, leftovers: Leftovers, caplog: pytest.LogCaptureFixture
) -> None:
    limits = leftovers.limits(wall_seconds=1000)
    for delay in range(0, 60, 4):
        task = asyncio.create_task(sandbox.run(_FOREVER, limits=limits))
        await asyncio.sleep(delay / 1000)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        leftovers.check()
    gc.collect()
    assert not caplog.records, "an exception of a cancelled run was not retrieved"


async def test_runs_that_wait_can_be_cancelled_before_they_begin(sandbox: Sandbox, leftovers: Leftovers) -> None:
    limits = leftovers.limits(wall_seconds=1000)
    tasks = [asyncio.create_task(sandbox.run(_FOREVER, limits=limits)) for _ in range(20)]
    await asyncio.sleep(0.2)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    leftovers.check()
    assert (await sandbox.run("print(1)")).stdout == b"1\n"


def test_one_loop_after_another_and_loops_of_other_threads(sandbox: Sandbox) -> None:
    for _ in range(3):
        assert asyncio.run(sandbox.run("print(1)")).stdout == b"1\n"
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(asyncio.run(sandbox.run("print(2)")).stdout)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"2\n"] * 4


async def test_many_at_once_take_turns(sandbox: Sandbox) -> None:
    program = "import sys\nprint(sys.argv[1])"
    executions = await asyncio.gather(*(sandbox.run(program, str(i)) for i in range(30)))
    assert [execution.stdout for execution in executions] == [f"{i}\n".encode() for i in range(30)]


async def test_many_runs_leave_no_file_descriptor(sandbox: Sandbox) -> None:
    await sandbox.run("pass")
    leftovers = Leftovers()
    await asyncio.gather(*(sandbox.run("pass", limits=leftovers.limits()) for _ in range(20)))
    leftovers.check()


_RUN = "sandbox.run(program, limits=limits)"
_RUN_TESTS = "run_tests(sandbox, [('', program)], ['assert f()'], Task(seconds=1000, limits=limits))"


@pytest.mark.skipif(sys.platform != "linux", reason="the death of a parent is noticed on Linux only")
@pytest.mark.parametrize("run", [_RUN, _RUN_TESTS])
def test_when_this_process_is_killed_its_sandboxes_are_too(sandbox: Sandbox, leftovers: Leftovers, run: str) -> None:
    if sandbox.name == "docker":
        pytest.skip("containers belong to the daemon; they end by their own clock")
    host = f"""
import asyncio, os
from rewards.sandbox import Limits
from rewards.sandbox.{sandbox.name} import {type(sandbox).__name__}
from rewards.sandbox.harness import Task, run_tests
sandbox, program = {type(sandbox).__name__}(), {_FOREVER!r}
limits = Limits(file_bytes=int(os.environ["MARK"]), wall_seconds=1000)
asyncio.run({run})
"""
    environment = os.environ | {"MARK": str(leftovers.limits().file_bytes)}
    for delay in (0.02, 0.3):  # While the sandbox starts, and after.
        process = subprocess.Popen([sys.executable, "-c", host], cwd=Path(__file__).parents[3], env=environment)
        try:
            while not leftovers.processes():
                time.sleep(0.001)
            time.sleep(delay)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        leftovers.check(within=30)
        for folder in glob.glob(f"{tempfile.gettempdir()}/sandbox-{process.pid}-*"):
            os.rmdir(folder)  # Nobody else is left to do it.


async def test_isolated_programs_cannot_reach_the_network(isolated: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        program = "import socket, sys\nsocket.create_connection(('127.0.0.1', int(sys.argv[1])), 1)"
        execution = await isolated.run(program, str(listener.getsockname()[1]))
        assert execution.returncode != 0
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_isolated_programs_see_no_process_but_their_own(isolated: Sandbox) -> None:
    program = "import os\nprint(os.getpid(), [n for n in os.listdir('/proc') if n.isdigit()])"
    assert (await isolated.run(program, first=True)).stdout == b"1 ['1']\n"
    assert (await isolated.run(program)).stdout == b"2 ['1', '2']\n", "and the one that watches over it"


async def test_isolated_programs_see_no_file_of_the_user(isolated: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret")
    paths = [str(tmp_path / "secret"), str(Path(__file__)), "/etc/shadow", "/etc/passwd-", str(Path.home() / ".bashrc")]
    program = """
import json, sys
found = []
for path in sys.argv[1:]:
    try:
        found.append(open(path).read())
    except OSError:
        pass
print(json.dumps(found))
"""
    assert json.loads((await isolated.run(program, *paths)).stdout) == []


async def test_isolated_programs_are_nobody_and_cannot_become_anybody(isolated: Sandbox) -> None:
    program = """
import os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(os.getuid() == 0, int(status["CapEff"], 16), int(status["CapPrm"], 16), status["NoNewPrivs"].strip())
for become in (lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.chroot("/tmp")):
    try:
        become()
        print("became")
    except OSError:
        pass
"""
    assert (await isolated.run(program)).stdout == b"False 0 0 1\n"


async def test_isolated_programs_cannot_write_to_the_system(isolated: Sandbox) -> None:
    program = """
import os, sys
for folder in ("/", "/usr", "/usr/lib", "/etc", "/dev", "/bin", "/lib", "/home", "/root", sys.prefix, os.__file__[:-6]):
    try:
        open(f"{folder}/hostile-file", "w").close()
        print(folder)
    except OSError:
        pass
"""
    assert (await isolated.run(program)).stdout == b""


async def test_isolated_programs_can_have_so_many_processes_and_no_more(isolated: Sandbox) -> None:
    program = """
import os, time
count = 0
try:
    for _ in range(100):
        if os.fork() == 0:
            time.sleep(1000)
        count += 1
except OSError:
    print(count)
"""
    found = await asyncio.gather(*(isolated.run(program, limits=Limits(processes=10)) for _ in range(3)))
    assert [execution.stdout for execution in found] == [b"9\n"] * 3, "each run is counted by itself"
