"""The example scripts run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PATIENCE = 600.0
"""Seconds after which a script counts as hung; nothing takes this long unless it hangs, on a slow machine either."""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment)


def test_the_demo_solves_its_question_and_compares() -> None:
    done = run("demo.py", "--limit", "4")
    assert done.returncode == 0, done.stderr
    assert "Answer    155" in done.stdout
    assert "plain sampling" in done.stdout


def test_the_demo_refuses_nothing_to_compare() -> None:
    done = run("demo.py", "--limit", "0")
    assert done.returncode == 2
    assert "--limit must be at least 1" in done.stderr


@pytest.mark.parametrize("size", ["reference", "small"])
def test_training_makes_a_checkpoint_like_the_embedded_one(size: str, tmp_path: Path) -> None:
    from backends.catalog import embedded_path

    first = run("train_tiny.py", size, "--out", str(tmp_path / "one"), "--steps", "2", "--batch-size", "4")
    assert first.returncode == 0, first.stderr
    more = ["--init", str(tmp_path / "one"), "--slips", "0.5", "--steps", "1", "--batch-size", "4"]
    second = run("train_tiny.py", size, "--out", str(tmp_path / "two"), *more)
    assert second.returncode == 0, second.stderr
    shipped = embedded_path("tiny/qwen3" if size == "reference" else "tiny/qwen3-small")
    assert (tmp_path / "two" / "tokenizer.json").read_bytes() == (shipped / "tokenizer.json").read_bytes()
    configs = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "two", shipped)]
    assert configs[0] == configs[1]


def test_custom_rewards_are_swapped_and_combined() -> None:
    done = run("custom_reward.py")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert all(re.fullmatch(r".+: #### \d+, reward [01]\.\d\d", line) for line in lines)


SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "stand_in.py")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_example_says_what_to_install_and_is_in_the_index(script: str) -> None:
    text = (EXAMPLES / script).read_text(encoding="utf-8")
    (extras,) = re.findall(r'^    pip install -e "\.\[([a-z,-]+)\]".*\n    python examples/', text, re.MULTILINE)
    known = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(extras.split(",")) <= set(known["project"]["optional-dependencies"])
    (row,) = re.findall(rf"^\| \[{script}\]\({script}\).*$", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert f"`{extras}`" in row


AGENTS = [
    "openai_function_calling.py",
    "openai_agents_sdk.py",
    "pydantic_ai_agent.py",
    "langgraph_agent.py",
    "litellm_tools.py",
]


@pytest.mark.parametrize("script", AGENTS)
def test_an_agent_of_every_framework_uses_the_tool(script: str) -> None:
    done = run(script)
    assert done.returncode == 0, done.stderr
    told, said = done.stdout.splitlines()
    assert json.loads(told.removeprefix("the tool said "))["answer"] == "241"
    assert said.startswith("The answer is 241 (confidence ")
    assert done.stderr == ""


def test_one_tool_serves_tasks_with_rewards_of_their_own() -> None:
    done = run("swap_rewards.py")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("a vote: 167, reward 1.00, confidence ")
    assert lines[1].startswith("a verifier of the operator's: #### 175, reward 1.00, confidence ")
    assert lines[2].startswith(("tests in a sandbox: 7 * 12, reward 1.00, ", "no tests in a sandbox here: "))
    assert lines[3].startswith("what is not on offer: reward 'llm_judge' is not allowed here; allowed: self_consist")


@pytest.fixture(scope="module")
def with_plugin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install the example plugin into a folder of its own; return an environment that sees it."""
    target = tmp_path_factory.mktemp("plugin")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(target)]
    source = shutil.copytree(EXAMPLES / "reward_plugin", tmp_path_factory.mktemp("source") / "reward_plugin")
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True, timeout=PATIENCE)
    return {**os.environ, "PYTHONPATH": str(target)}


def test_the_plugins_reward_is_found_by_name(with_plugin: dict[str, str]) -> None:
    program = (
        "import asyncio, rewards, backends\n"
        "reward = rewards.build('arithmetic:tolerance=1')\n"
        "print(asyncio.run(reward.score('q', [backends.Completion(text='1 + 1 = 3')])), reward.name)\n"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=with_plugin, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("[1.0] arithmetic\n", "")


def test_the_command_line_lists_the_plugins_reward(with_plugin: dict[str, str]) -> None:
    command = [str(Path(sys.executable).parent / "ets"), "rewards", "arithmetic"]
    done = subprocess.run(command, capture_output=True, text=True, env=with_plugin, timeout=PATIENCE)
    assert done.stdout.splitlines()[:3] == [
        "arithmetic",
        "    Reward the share of right equations in the working; no verdict where there is none.",
        "      tolerance: int = 0",
    ]


def test_the_plugins_own_tests_pass(with_plugin: dict[str, str], tmp_path: Path) -> None:
    tests = EXAMPLES / "reward_plugin" / "tests"
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, capture_output=True, text=True, env=with_plugin, timeout=PATIENCE, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
