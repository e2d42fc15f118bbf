"""The example application: it answers, and forgets questions whose clients have gone."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from backends.scripted import ScriptedBackend
from ets_agent import GuidedReasoning
from tests.server.served import PATIENCE, SCRIPT, post, wait_until

EXAMPLE = Path(__file__).parents[2] / "examples" / "fastapi_app.py"
QUESTION = {
    "question": "Iris has 4 packs with 95 eggs in each. Iris loses 213 of them. How many eggs does Iris have now?"
}
ANSWER = "167"


def ask(url: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_it_runs_as_a_script_and_answers() -> None:
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLE), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    late = threading.Timer(PATIENCE * 10, process.kill)
    late.start()
    try:
        assert process.stderr is not None
        found = next(filter(None, (re.search(r"running on (http://[\d.:]+)", line) for line in process.stderr)))
        status, reply = ask(f"{found[1]}/answer", QUESTION)
        assert (status, reply["cut_short"], reply["answer"]) == (200, False, ANSWER)
        assert 0 < reply["confidence"] <= 1
        for mistake in ("", " ", "?" * 2000, "?" * 2001):
            status, reply = ask(f"{found[1]}/answer", {"question": mistake})
            assert (status, bool(reply["detail"])) == (422, True), mistake
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)
    finally:
        late.cancel()
        process.kill()
        process.communicate()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ScriptedBackend]]:
    """The application in a thread, over a model that takes longer than any test waits."""
    spec = importlib.util.spec_from_file_location("fastapi_app", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fastapi_app", module)
    spec.loader.exec_module(module)
    backend = ScriptedBackend(SCRIPT, delay=600)

    def opened(name: str, **options: Any) -> GuidedReasoning:
        return GuidedReasoning(backend, **options | {"max_concurrency": 1, "max_queue": 0})

    monkeypatch.setattr(module, "GuidedReasoning", opened)
    server = uvicorn.Server(uvicorn.Config(module.app, log_config=None, log_level="critical", ws="none"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        thread = threading.Thread(target=lambda: server.run([listener]), daemon=True)
        thread.start()
        deadline = time.monotonic() + PATIENCE
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"{address[0]}:{address[1]}", backend
        server.should_exit = True
        thread.join(PATIENCE)


def test_a_client_that_hangs_up_is_forgotten(slow: tuple[str, ScriptedBackend]) -> None:
    address, backend = slow
    host, port = address.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(post(json.dumps(QUESTION).encode(), "/answer"))
        wait_until(lambda: backend.active > 0)
        assert ask(f"http://{address}/answer", QUESTION) == (429, {"detail": "too many questions at once"})
    wait_until(lambda: backend.active == 0)
