"""The example scripts run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)


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
