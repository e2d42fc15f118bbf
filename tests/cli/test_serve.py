"""``ets serve``: what it refuses before it loads a model, and how it begins and ends as a process."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Ets, Loader
from tests.cli.test_process import PATIENCE, ROOT
from tests.server.served import wait_until

pytest.importorskip("fastapi")

QUESTION: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "How many?"}]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--host", "0.0.0.0"],
            "0.0.0.0 can be reached from other machines, so callers need keys: give --api-key-file",
        ),
        (["--host", "no such host"], "there is no address 'no such host'"),
        (["--api-key-file", "/nowhere/keys"], "cannot read API keys from /nowhere/keys: No such file or directory"),
        (["--allow-reward", "wisdom"], "no reward is called 'wisdom'"),
        (["--max-candidates", "0"], "--max-candidates is 0; allowed: a whole number above 0"),
        (["--traces", "/nowhere"], "there is no folder /nowhere for traces"),
        (["--temperature", "-1"], "temperature is -1.0"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_before_a_model_is_loaded(
    ets: Ets, loader: Loader, arguments: list[str], message: str
) -> None:
    result = ets("serve", "--port", "0", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"ets: error: {message}")
    assert result.stderr.count("\n") == 1
    assert loader.calls == []


def test_a_port_that_is_taken_is_told(ets: Ets, loader: Loader) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = ets("serve", "--port", str(port))
    assert result.stderr == f"ets: error: cannot listen on 127.0.0.1 port {port}: Address already in use\n"
    assert (result.exit_code, loader.calls) == (2, [])


def test_a_missing_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['fastapi'] = None; sys.argv[1:] = ['serve']\nfrom ets_agent.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert done.stderr == (
        "ets: error: the HTTP server needs FastAPI, uvicorn and prometheus-client: pip install 'ets-agent[server]'\n"
    )


class Process:
    """``ets serve`` over a fake model, as a process that has said where it listens."""

    def __init__(self, kind: str, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.fake_ets", kind, "serve", "--port", "0", *arguments],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        late = threading.Timer(PATIENCE, self.process.kill)
        late.start()
        line = self.process.stderr.readline()
        late.cancel()
        match = re.fullmatch(r"ets: scripted answers at http://(127\.0\.0\.1:\d+)/v1\n", line)
        assert match, line
        self.address = match[1]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def wait(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and what was said on stderr since."""
        out, err = self.process.communicate(timeout=PATIENCE)
        assert out == ""
        return self.process.returncode, err


@contextmanager
def serving(kind: str, *arguments: str, **environment: str) -> Iterator[Process]:
    running = Process(kind, *arguments, **environment)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_well(number: signal.Signals) -> None:
    with serving("scripted", "--served-model-name", "best") as server:
        status, reply = server.ask("POST", "/v1/chat/completions", QUESTION | {"ets": {"effort": "low"}})
        assert (status, reply["model"]) == (200, "best")
        server.process.send_signal(number)
        assert server.wait() == (0, "")


def test_what_is_under_way_is_ended_in_time() -> None:
    with serving("hanging", "--shutdown-timeout", "0.2") as server:
        asking, answers = _ask_aside(server)
        _wait_for_run(server)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        code, said = server.wait()
        assert (code, said) == (0, "backend closed\n")
        assert time.monotonic() - began < 10
        asking.join(PATIENCE)
        ((status, reply),) = answers
        assert (status, reply["error"]["code"]) == (503, "shutting_down")


def test_a_thread_that_cannot_be_stopped_does_not_keep_it() -> None:
    with serving("decoding", "--shutdown-timeout", "0") as server:
        _ask_aside(server)
        _wait_for_run(server)
        server.process.send_signal(signal.SIGTERM)
        code, _ = server.wait()
        assert code == 128 + signal.SIGTERM


def test_a_second_signal_ends_it_at_once() -> None:
    with serving("hanging", "--shutdown-timeout", "600") as server:
        _ask_aside(server)
        _wait_for_run(server)
        server.process.send_signal(signal.SIGTERM)
        _wait_until_it_stops(server)  # Two signals that wait at the same time come in an order of their own.
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(0.5)
        server.process.send_signal(signal.SIGINT)
        assert server.wait()[0] == 128 + signal.SIGINT


def test_keys_come_from_the_environment_and_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n")
    with serving("scripted", "--api-key-file", str(file), "--host", "127.0.0.1", ETS_API_KEYS="two") as server:
        for key, status in (("one", 200), ("two", 200), ("three", 401)):
            assert server.ask("GET", "/v1/models", Authorization=f"Bearer {key}")[0] == status


def test_limits_and_the_policy_hold(tmp_path: Path) -> None:
    arguments = ["--max-body", "300", "--max-answers", "2", "--rate-limit", "4", "--allow-reward", "regex:pattern=32"]
    with serving("scripted", *arguments, "--max-tokens", "20", "--traces", str(tmp_path)) as server:
        chat = "/v1/chat/completions"
        assert server.ask("POST", chat, {"x": "y" * 400})[0] == 413
        assert server.ask("POST", chat, QUESTION | {"n": 3})[0] == 400
        assert server.ask("POST", chat, QUESTION | {"max_tokens": 21})[0] == 400
        assert server.ask("POST", chat, QUESTION | {"ets": {"reward": "self_consistency"}})[0] == 400
        status, reply = server.ask("POST", chat, QUESTION)
        assert status == 200
        (trace,) = tmp_path.iterdir()
        assert trace.name == f"{reply['choices'][0]['ets']['trace_id']}.jsonl"
        # What was refused for what it asks counts, too: it took work to find out.
        assert [server.ask("POST", chat, QUESTION)[0] for _ in range(2)] == [200, 429]


def test_callers_without_keys_use_names_of_this_machine() -> None:
    with serving("scripted", "--allow-host", "mine.example") as server:
        for name, status in (("localhost:1", 200), ("Mine.example", 200), ("evil.example:8000", 421)):
            assert server.ask("GET", "/v1/models", Host=name)[0] == status


def _ask_aside(server: Process) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []

    def ask() -> None:
        with suppress(OSError, http.client.HTTPException):  # The process may be ended over it.
            answers.append(server.ask("POST", "/v1/chat/completions", QUESTION))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread, answers


def _wait_until_it_stops(server: Process) -> None:
    host, port = server.address.split(":")

    def refuses() -> bool:
        try:
            socket.create_connection((host, int(port)), timeout=PATIENCE).close()
        except OSError:
            return True
        return False

    wait_until(refuses)


def _wait_for_run(server: Process) -> None:
    def runs() -> bool:
        connection = http.client.HTTPConnection(server.address, timeout=PATIENCE)
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
        connection.close()
        return "ets_runs_active 1.0" in page

    wait_until(runs)
