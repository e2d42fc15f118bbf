"""Every snippet of the README and the docs is run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rewards.sandbox import SandboxUnavailableError, select
from tests.fake_server import FakeServer, ScriptedModel

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


SERVERS = {8000: "tiny/qwen3", 8001: "tiny/qwen3-small", 8002: "tiny/qwen3"}
"""What the pages say is served at which port of this machine; fake servers take their place."""
SCRIPT = {"12 + 30 = 42\n#### 42": 2.0, "12 + 30 = 43\n#### 43": 1.0}


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    """Where the servers of the pages really are."""
    with ExitStack() as stack:
        yield {
            f"http://localhost:{port}/v1": stack.enter_context(FakeServer(ScriptedModel(SCRIPT, name=name))).base_url
            for port, name in SERVERS.items()
        }


def with_servers(snippet: str, addresses: dict[str, str]) -> str:
    for said, real in addresses.items():
        snippet = snippet.replace(said, real)
    return snippet


def snippets(language: str) -> list[tuple[str, str]]:
    """Blocks of one language, each with the place where it begins."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            line = text[: match.start()].count("\n") + 1
            found.append((f"{page.name}:{line}", match[1]))
    return found


def commands() -> list[tuple[str, str]]:
    return [
        (f"{place} {line[2:50]}", line[2:])
        for place, block in snippets("console")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]


def skip_without_sandbox(snippet: str) -> None:
    if "code_tests" in snippet or "sandbox" in snippet:
        try:
            select()
        except SandboxUnavailableError as error:
            pytest.skip(str(error))


@pytest.mark.parametrize("code", [pytest.param(code, id=place) for place, code in snippets("python")])
def test_python_snippets_run(code: str, tmp_path: Path, addresses: dict[str, str]) -> None:
    skip_without_sandbox(code)
    script = tmp_path / "snippet.py"
    script.write_text(with_servers(code, addresses), encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [pytest.param(command, id=name) for name, command in commands()])
def test_commands_run(command: str, tmp_path: Path, addresses: dict[str, str]) -> None:
    words = shlex.split(with_servers(command, addresses), comments=True)
    if words[0] in {"make", "git", "cd", "pip"}:
        targets = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert words[0] != "make" or re.search(rf"^{words[1]}:", targets, re.MULTILINE)
        return  # What sets the project up cannot run inside its own tests.
    skip_without_sandbox(command)
    if "--limit" in words:  # The figures take minutes; here it is enough that the command works.
        words[words.index("--limit") + 1] = "2"
    if "--prompts" in words:
        words[words.index("--prompts") + 1] = "1"
    if "--out" in words:
        words[words.index("--out") + 1] = str(tmp_path)
        words += ["--repetitions", "2"]
    if words[0] == "python":
        words = [sys.executable, *words[1:]]
    else:
        words[0] = str(Path(sys.executable).parent / words[0])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_there_are_snippets() -> None:
    assert len(snippets("python")) >= 2
    assert len(commands()) >= 4
