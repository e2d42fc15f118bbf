"""Every snippet of the README and the docs is run, and answers what it asks."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import backends
from ets_agent import ETSConfig
from rewards.sandbox import SandboxUnavailableError, select
from tests.fake_server import FakeServer
from tests.fake_server.local import LocalModel
from tests.server.served import Served

ROOT = Path(__file__).parent.parent
PATIENCE = 600.0
"""Seconds after which a snippet counts as hung; nothing takes this long unless it hangs, on a slow machine either."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


SERVERS = {8000: "tiny/qwen3", 8001: "tiny/qwen3-small", 8002: "tiny/qwen3"}
"""What the pages say is served at which port of this machine; fake servers of the same models take their place."""
GUIDED = "server.md"
"""The page on whose port 8000 `ets serve` listens."""
ANSWERS = {
    "Olga has 342 marbles. Olga gives 218 to Rosa. Olga finds 117 more. How many marbles does Olga have now?": "241",
    "Iris has 4 packs with 95 eggs in each. Iris loses 213 of them. How many eggs does Iris have now?": "167",
}
"""The questions of the pages. The embedded model knows word problems of its training's patterns and no others, so one
that is asked there must be of this shape, and tried with many seeds before it stands here."""


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    """Where the servers of the pages really are."""
    models = {port: LocalModel.load(name) for port, name in SERVERS.items()}
    with ExitStack() as stack:
        for model in models.values():
            stack.callback(lambda model=model: asyncio.run(model.aclose()))
        yield {
            f"http://localhost:{port}/v1": stack.enter_context(FakeServer(model)).base_url
            for port, model in models.items()
        }


@pytest.fixture(scope="module")
def guided() -> Iterator[dict[str, str]]:
    """Where `ets serve` really is."""
    with Served(backends.load("tiny/qwen3"), config=ETSConfig(max_tokens=64)) as server:
        yield {"http://localhost:8000": server.url}


@pytest.fixture
def servers(place: str, request: pytest.FixtureRequest) -> dict[str, str]:
    """What stands on a page as the address of a server, and where that server is."""
    found: dict[str, str] = request.getfixturevalue("guided" if place.startswith(GUIDED) else "addresses")
    return found


def with_servers(snippet: str, servers: dict[str, str]) -> str:
    for said, real in servers.items():
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


def expect_answers(snippet: str, output: str) -> None:
    for question, answer in ANSWERS.items():
        if question in snippet:
            assert re.search(rf"\b{answer}\b", output), f"{question} {answer}: {output}"


@pytest.mark.parametrize(("place", "code"), [pytest.param(*found, id=found[0]) for found in snippets("python")])
def test_python_snippets_run_and_answer_right(place: str, code: str, tmp_path: Path, servers: dict[str, str]) -> None:
    skip_without_sandbox(code)
    script = tmp_path / "snippet.py"
    script.write_text(with_servers(code, servers), encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expect_answers(code, done.stdout)


@pytest.mark.parametrize(("place", "command"), [pytest.param(*found, id=found[0]) for found in commands()])
def test_commands_run_and_answer_right(place: str, command: str, tmp_path: Path, servers: dict[str, str]) -> None:
    words = shlex.split(with_servers(command, servers), comments=True)
    if words[0] in {"make", "git", "cd", "pip", "."}:
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
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    expect_answers(command, done.stdout)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_ask_only_what_the_embedded_model_can_answer(page: Path) -> None:
    blocks = re.findall(
        r"^```(?:python|console|sh)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    asked = {
        question for block in blocks for question in re.findall(r'"([^"\n]*(?:How many|What is \d)[^"\n]*)"', block)
    }
    assert asked <= set(ANSWERS)


def test_there_are_snippets() -> None:
    assert len(snippets("python")) >= 2
    assert len(commands()) >= 4
