"""``ets solve --trace`` and ``ets trace``: a run is recorded while it goes on, and shown."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Any

import pytest

from backends.scripted import ScriptedBackend
from ets_agent import Result
from ets_agent.trace_page import MARK
from ets_agent.traces import TraceWriter, read_trace
from tests.cli.conftest import Ets, Loader
from tests.cli.test_process import PATIENCE, ROOT, terminal

QUESTION = "Ada has 12 apples. How many?"


@pytest.fixture
def file(ets: Ets, tmp_path: Path) -> Path:
    """A recorded run."""
    path = tmp_path / "run.jsonl"
    assert ets("solve", QUESTION, "--seed", "1", "--trace", str(path)).exit_code == 0
    return path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that a browser was asked to open."""
    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: addresses.append(address) or True)
    return addresses


def test_a_run_is_recorded(ets: Ets, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    outcome = ets("solve", QUESTION, "--seed", "1", "--json", "--trace", str(path))
    trace = read_trace(path)
    assert trace.result == Result.model_validate_json(outcome.stdout)
    assert trace.prompt == [{"role": "user", "content": QUESTION}]
    assert trace.reward == "self_consistency"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_config_file_may_name_the_trace(ets: Ets, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(f'{{"trace": "{tmp_path}/run.jsonl"}}')
    assert ets("solve", QUESTION, "--config", str(config)).exit_code == 0
    assert read_trace(tmp_path / "run.jsonl").finished


def test_a_trace_is_not_overwritten_and_no_model_is_loaded(ets: Ets, loader: Loader, file: Path) -> None:
    before, loaded = file.read_bytes(), len(loader.calls)
    outcome = ets("solve", QUESTION, "--trace", str(file))
    assert outcome.exit_code == 2
    assert (
        outcome.stderr == f"ets: error: {file} exists already; give the trace another name, or remove the file first\n"
    )
    assert file.read_bytes() == before
    assert len(loader.calls) == loaded


def test_a_folder_that_is_missing_is_a_usage_error(ets: Ets, loader: Loader, tmp_path: Path) -> None:
    outcome = ets("solve", QUESTION, "--trace", str(tmp_path / "no" / "run.jsonl"))
    assert outcome.exit_code == 2
    assert "there is no folder" in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert loader.calls == []


def test_a_disk_that_fills_up_costs_the_trace_and_not_the_answer(
    ets: Ets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.jsonl"
    write = TraceWriter._line
    lines: list[str] = []

    def fill(writer: TraceWriter, text: str) -> None:
        lines.append(text)
        if len(lines) == 3:
            os.dup2(os.open("/dev/full", os.O_WRONLY), writer._file.fileno())
        write(writer, text)

    monkeypatch.setattr(TraceWriter, "_line", fill)
    outcome = ets("solve", QUESTION, "--seed", "1", "--trace", str(path))
    assert (outcome.exit_code, outcome.stdout) == (0, "32\n")
    assert outcome.stderr == (
        f"ets: warning: cannot write the trace {path}: {os.strerror(errno.ENOSPC)}; "
        "what is in it ends before the run did\n"
    )
    assert len(lines) == 3
    assert not read_trace(path).finished


def test_a_run_that_fails_at_once_leaves_no_file(ets: Ets, loader: Loader, tmp_path: Path) -> None:
    loader.make = lambda: ScriptedBackend(["a"], context=1)
    outcome = ets("solve", QUESTION, "--trace", str(tmp_path / "run.jsonl"))
    assert outcome.exit_code != 0
    assert list(tmp_path.iterdir()) == []


def stuck(path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a run whose second step never ends, and return when it has got there; no response ends in the first."""
    command = [sys.executable, "-m", "tests.traces.stuck_ets", "solve", QUESTION, "--steps", "16", "--trace", str(path)]
    process = subprocess.Popen([*command, *arguments], cwd=ROOT, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline() == b"stuck\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_process_that_is_killed_leaves_what_was_written(
    ets: Ets, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    path = tmp_path / "run.jsonl"
    with stuck(path) as process:
        process.send_signal(number)
        assert process.wait(PATIENCE) == code
    trace = read_trace(path)
    assert (len(trace.steps), trace.step, trace.num_steps, trace.finished) == (1, 2, 16, False)
    assert trace.steps[0].candidates
    assert ets("trace", str(path)).exit_code == 0
    assert MARK in (tmp_path / "run.html").read_text()


def test_a_run_under_way_can_be_looked_at(ets: Ets, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with stuck(path) as process:
        assert not read_trace(path).finished
        assert ets("trace", str(path)).exit_code == 0
        process.kill()


def test_the_page_goes_next_to_the_file(ets: Ets, file: Path, opened: list[str]) -> None:
    outcome = ets("trace", str(file))
    page = file.with_suffix(".html")
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (0, f"{page}\n", "")
    assert QUESTION in page.read_text(encoding="utf-8")
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert opened == []  # stdout is no terminal
    assert sorted(file.parent.iterdir()) == [page, file]


def test_the_page_goes_where_it_is_wanted(ets: Ets, file: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "page.html"
    target.parent.mkdir()
    assert ets("trace", str(file), "--out", str(target)).stdout == f"{target}\n"
    assert target.exists()
    assert not file.with_suffix(".html").exists()


def test_a_page_is_replaced_by_a_newer_one(ets: Ets, file: Path) -> None:
    page = file.with_suffix(".html")
    ets("trace", str(file))
    page.write_text(page.read_text().replace(QUESTION, "old"))
    assert ets("trace", str(file)).exit_code == 0
    assert QUESTION in page.read_text()


@pytest.mark.parametrize("content", ["", "<!doctype html>\n<title>A thesis</title>"])
def test_another_file_is_not_replaced(ets: Ets, file: Path, content: str) -> None:
    page = file.with_suffix(".html")
    page.write_text(content)
    outcome = ets("trace", str(file))
    assert outcome.exit_code == 2
    assert outcome.stderr == (
        f"ets: error: {page} exists already and is not the page of a run; name another with --out\n"
    )
    assert page.read_text() == content


def test_the_trace_itself_is_not_replaced(ets: Ets, file: Path) -> None:
    before = file.read_bytes()
    assert ets("trace", str(file), "--out", str(file)).exit_code == 2
    assert file.read_bytes() == before


@pytest.mark.parametrize("target", ["{}", "{}/no/page.html", "{}/run.jsonl/page.html", "/dev/null"])
def test_a_place_where_no_page_can_be_is_a_usage_error(ets: Ets, file: Path, target: str) -> None:
    outcome = ets("trace", str(file), "--out", target.format(file.parent))
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("ets: error: ")
    assert outcome.stderr.count("\n") == 1
    assert [path.name for path in file.parent.iterdir()] == ["run.jsonl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        (b"", "is empty"),
        (b"\x7fELF\0\0", "is no trace"),
        (b'{"text": "a result"}\n', "is no trace"),
        (b'{"type": "run", "format": 99}\n', "is a trace of format 99; this version reads format 1"),
    ],
)
def test_what_is_no_trace_is_an_error_of_one_line(
    ets: Ets, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "run.jsonl"
    if content is not None:
        path.write_bytes(content)
    outcome = ets("trace", str(path))
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("ets: error: ")
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert not (tmp_path / "run.html").exists()


@pytest.mark.parametrize("folder", [".", "..", "folder", ""])
@pytest.mark.parametrize("arguments", [(), ("--out", "page.html")])
def test_a_folder_is_no_trace(
    ets: Ets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    outcome = ets("trace", folder, *arguments)
    assert (outcome.exit_code, outcome.stderr) == (
        2,
        f"ets: error: cannot read the trace {folder or '.'}: Is a directory\n",
    )


def test_the_browser_opens_on_demand(ets: Ets, file: Path, opened: list[str]) -> None:
    assert ets("trace", str(file), "--open").exit_code == 0
    assert opened == [file.with_suffix(".html").as_uri()]


@pytest.mark.parametrize(
    ("arguments", "display", "count"), [((), ":0", 1), ((), "", 0), (("--no-open",), ":0", 0), (("--open",), "", 1)]
)
def test_on_a_terminal_with_a_screen_the_browser_opens_by_itself(
    file: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], display: str, count: int
) -> None:
    from ets_agent.cli.app import app

    for name in ("WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(SystemExit) as end:
        app(["trace", str(file), *arguments])
    assert not end.value.code
    assert len(opened) == count


@pytest.mark.parametrize("failure", [False, webbrowser.Error("none")])
def test_a_missing_browser_is_a_warning(ets: Ets, file: Path, monkeypatch: pytest.MonkeyPatch, failure: Any) -> None:
    def fail(address: str) -> bool:
        if isinstance(failure, Exception):
            raise failure
        return False

    monkeypatch.setattr(webbrowser, "open", fail)
    outcome = ets("trace", str(file), "--open")
    assert outcome.exit_code == 0
    assert outcome.stdout == f"{file.with_suffix('.html')}\n"
    assert outcome.stderr == "ets: warning: no browser was found to open the page in\n"


def test_progress_goes_on_while_a_run_is_recorded(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with terminal("scripted", "solve", "How many?", "--seed", "1", "--trace", str(path)) as screen:
        assert screen.wait() == 0
        assert b"effective sample size" in screen.output
        assert screen.output.endswith(b"32\r\n")
    assert read_trace(path).finished
