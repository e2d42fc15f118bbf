"""The command as a process: signals, streams and exit codes."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds after which a process counts as hung; nothing waits this long unless it hangs."""


def command(kind: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.cli.fake_ets", kind, *arguments]


def run(kind: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(kind, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False, **options
    )


class Terminal:
    """A process whose stdin, stdout and stderr are a terminal of its own."""

    def __init__(self, arguments: list[str]) -> None:
        self.master, slave = pty.openpty()
        environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
        self.process = subprocess.Popen(
            arguments, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self.output = b""

    def read_until(self, wanted: bytes) -> None:
        """Read until the process has written something, or fail."""
        deadline = time.monotonic() + PATIENCE
        while wanted not in self.output:
            assert self._read(deadline), f"ended without {wanted!r}: {self.output!r}"

    def wait(self) -> int:
        """Read to the end; return the exit code."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        return self.process.wait(PATIENCE)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"hangs after {self.output!r}"
        try:
            data = os.read(self.master, 65536)
        except OSError:  # what Linux says when the other side is closed
            return False
        self.output += data
        return bool(data)


@contextmanager
def terminal(kind: str, *arguments: str) -> Iterator[Terminal]:
    screen = Terminal(command(kind, *arguments))
    try:
        yield screen
    finally:
        screen.process.kill()
        screen.process.wait()
        os.close(screen.master)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("kind", ["hanging", "decoding"])
def test_a_signal_ends_a_run_at_once(kind: str, number: signal.Signals, code: int) -> None:
    with terminal(kind, "solve", "How many?") as screen:
        screen.read_until(b"step 1/4")
        sent = time.monotonic()
        screen.process.send_signal(number)
        assert screen.wait() == code
        assert time.monotonic() - sent < 10  # instead of never; a busy machine may need more than the second it takes
        assert b"Traceback" not in screen.output
        assert screen.output.rfind(b"\x1b[?25h") > screen.output.rfind(b"\x1b[?25l"), "the cursor stays hidden"


def test_an_interrupted_run_closes_its_model() -> None:
    with terminal("hanging", "solve", "How many?") as screen:
        screen.read_until(b"step 1/4")
        screen.process.send_signal(signal.SIGINT)
        assert screen.wait() == 130
        assert b"backend closed" in screen.output


def test_a_signal_ends_the_loading_of_a_model() -> None:
    with terminal("loading", "solve", "How many?") as screen:
        screen.read_until(b"loading")
        screen.process.send_signal(signal.SIGINT)
        assert screen.wait() == 130
        assert b"Traceback" not in screen.output
        assert screen.output.rfind(b"\x1b[?25h") > screen.output.rfind(b"\x1b[?25l")


@pytest.mark.parametrize("command", ["solve How?", "eval word_problems", "mcp", "serve --port 0"])
def test_a_terminal_is_told_what_is_waited_for(command: str) -> None:
    model = "vllm/some/model@http://me:secret@localhost:1/v1"
    with terminal("loading", *command.split(), "--model", model) as screen:
        screen.read_until(b"loading vllm/some/model@http://localhost:1/v1")
        assert b"secret" not in screen.output


def test_a_signal_ends_an_evaluation() -> None:
    with terminal("decoding", "eval", "word_problems", "--limit", "3") as screen:
        screen.read_until(b"0/3")
        screen.process.send_signal(signal.SIGINT)
        assert screen.wait() == 130
        assert b"Traceback" not in screen.output
        assert screen.output.rfind(b"\x1b[?25h") > screen.output.rfind(b"\x1b[?25l")


def test_ctrl_c_is_typed_at_a_terminal() -> None:
    arguments = [sys.executable, "-m", "tests.cli.acquire_terminal", *command("decoding", "solve", "How many?")]
    screen = Terminal(arguments)
    try:
        screen.read_until(b"step 1/4")
        os.write(screen.master, b"\x03")
        assert screen.wait() == 130
        assert b"Traceback" not in screen.output
    finally:
        screen.process.kill()
        screen.process.wait()
        os.close(screen.master)


def test_a_terminal_shows_progress_and_the_answer() -> None:
    with terminal("scripted", "solve", "How many?", "--seed", "1") as screen:
        assert screen.wait() == 0
        assert b"effective sample size" in screen.output
        assert screen.output.endswith(b"32\r\n")


def test_a_pipe_gets_the_answer_and_nothing_else() -> None:
    outcome = run("scripted", "solve", "How many?", "--seed", "1", env=os.environ | {"FORCE_COLOR": "1"})
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, "32\n", "")


def test_a_reader_that_is_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as out:
        outcome = subprocess.run(
            command("scripted", "solve", "How many?", "--json"),
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
        )
    assert outcome.stderr == b""
    assert outcome.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "wb") as out:
        outcome = subprocess.run(
            command("scripted", "solve", "How many?"),
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("ets: error: OSError: ")
    assert outcome.stderr.count("\n") == 1


def test_a_bug_is_one_line_and_debug_shows_the_traceback() -> None:
    plain = run("buggy", "solve", "How many?", "--steps", "16")
    assert (plain.returncode, plain.stderr) == (1, "ets: error: KeyError: 'a bug\\nof two lines'\n")
    debug = run("buggy", "solve", "How many?", "--steps", "16", "--debug")
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr
    assert debug.stderr.endswith(plain.stderr)


def test_help_loads_no_model_library() -> None:
    script = (
        "import sys, ets_agent\n"
        "assert not {'typer', 'rich', 'torch'} & sys.modules.keys(), 'import ets_agent'\n"
        "sys.argv = ['ets', '--help']\n"
        "from ets_agent.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys(), 'ets --help'\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=PATIENCE, stdout=subprocess.DEVNULL)
