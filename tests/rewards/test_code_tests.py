"""Programs judged by tests, in HumanEval's format and others."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

import rewards
from backends import Completion
from rewards import RewardError, RewardSpecError
from rewards.code import CodeTests
from rewards.sandbox import Sandbox, SandboxError, SandboxUnavailableError
from rewards.sandbox.unsafe import Unsafe
from rewards.testing import check_reward
from tests.rewards.sandbox.available import available

HUMANEVAL = Path(__file__).parents[2] / ".." / "shared" / "data" / "humaneval" / "HumanEval.jsonl"

_PROMPT = 'import math\n\n\ndef area(r):\n    """Return the area of a circle.\n\n    >>> area(0)\n    0.0\n    """\n'
_TEST = "def check(candidate):\n    assert candidate(0) == 0\n    assert math.isclose(candidate(1), math.pi)\n"
_BODY = "    return math.pi * r**2\n"


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return available("auto")


async def _scores(reward: rewards.Reward, *texts: str, prompt: Any = "") -> list[float | None]:
    return await reward.score(prompt, [Completion(text=text) for text in texts])


async def test_the_reward_is_the_fraction_of_tests_passed(sandbox: Sandbox) -> None:
    reward = CodeTests("assert f(1) == 1\nassert f(2) == 4\nassert f(3) == 9", sandbox=sandbox)
    texts = ["def f(x): return x * x", "def f(x): return 4 if x == 2 else 0", "def f(x): return None", "Sorry.", ""]
    assert await _scores(reward, *texts) == [1.0, pytest.approx(1 / 3), 0.0, 0.0, 0.0]


async def test_a_response_may_be_a_body_a_function_or_a_chat_about_it(sandbox: Sandbox) -> None:
    reward = CodeTests(_TEST, entry_point="area", sandbox=sandbox)
    function = f"def area(r):\n{_BODY}"
    texts = [
        _BODY,
        _BODY.strip(),
        f"{_BODY}\n\nThis is how it's done.",
        function,
        _PROMPT + _BODY,
        f"Sure:\n```python\n{function}```\nIt squares the radius.",
        f"{_BODY}```\n",
        f"```python\n{_BODY}```",
        f"First\n```python\n{function[:-6]}\n```\nNo:\n```python\n{function}```\n```\narea(1)\n```",
        f"{_BODY}\n\nif __name__ == '__main__':\n    print(area(float(input())))\n",
    ]
    assert await _scores(reward, *texts, prompt=_PROMPT) == [1.0] * len(texts)
    chat = [{"role": "user", "content": f"Complete this:\n```python\n{_PROMPT}```"}]
    assert await _scores(reward, *texts, prompt=chat) == [1.0] * len(texts)
    given = CodeTests(_TEST, _PROMPT, "area", sandbox=sandbox)
    assert await _scores(given, *texts, prompt="Write it.") == [1.0] * len(texts)


async def test_several_texts_of_tests_are_each_run_by_themselves(sandbox: Sandbox) -> None:
    reward = CodeTests(["x = 1\nassert f(x) == 1", "assert f(x) == 1", "assert f(2) == 2"], sandbox=sandbox)
    assert await _scores(reward, "def f(x): return x") == [pytest.approx(2 / 3)]


async def test_it_is_built_from_a_mapping_with_its_arguments(sandbox: Sandbox) -> None:
    spec = {"name": "code_tests", "prompt": _PROMPT, "entry_point": "area", "test": _TEST, "timeout": 5}
    reward = rewards.build({**spec, "sandbox": sandbox.name})
    assert await _scores(reward, _BODY) == [1.0]
    assert reward.answer(Completion(text=f"```python\n{_BODY}```")) == _BODY.strip()
    assert (reward.minimum, reward.maximum, reward.pointwise) == (0.0, 1.0, True)
    with pytest.raises(RewardSpecError, match="unknown argument 'tests'"):
        rewards.build({"name": "code_tests", "tests": "assert f() == 1"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test": ""}, "not empty"),
        ({"test": []}, "not empty"),
        ({"test": ["assert f()", " "]}, "not empty"),
        ({"test": _TEST}, "say by entry_point which function"),
        ({"test": "assert f()", "entry_point": "f(x)"}, "name of a function"),
        ({"test": "assert f()", "timeout": 0}, "timeout"),
        ({"test": "assert f()", "timeout": float("nan")}, "timeout"),
        ({"test": "assert f()", "memory_mb": 1}, "memory_mb"),
        ({"test": "assert f()", "sandbox": "chroot"}, "auto, bubblewrap, docker, unsafe"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardSpecError, match=message):
        CodeTests(**{"sandbox": "unsafe", **arguments})


def test_a_check_that_is_called_needs_no_entry_point() -> None:
    CodeTests("def check(f):\n    assert f(1) == 1\ncheck(solve)", sandbox="unsafe")


def test_without_a_sandbox_it_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewards.sandbox.selection._KINDS", {})
    monkeypatch.setattr("rewards.sandbox.selection._AUTO", ())
    with pytest.raises(SandboxUnavailableError, match="install bubblewrap"):
        CodeTests("assert f() == 1")


async def test_tests_that_are_no_python_are_an_error_and_not_0(sandbox: Sandbox) -> None:
    with pytest.raises(RewardError, match="the tests are no Python"):
        await _scores(CodeTests("assert f( == 1", sandbox=sandbox), "def f(): return 1")


class _Flaky(Unsafe):
    """Fails for programs that say so."""

    runs = 0

    async def run(self, source: str, *arguments: str, **options: Any) -> Any:
        type(self).runs += 1
        if b"broken" in options["stdin"]:
            raise SandboxError("no sandbox for this one")
        return await super().run(source, *arguments, **options)


async def test_a_sandbox_that_fails_gives_no_verdict_and_never_0(caplog: pytest.LogCaptureFixture) -> None:
    reward = CodeTests("assert f() == 1", sandbox=_Flaky())
    with caplog.at_level(logging.WARNING):
        assert await _scores(reward, "broken", "def f(): return 1", "def f(): return 2") == [None, 1.0, 0.0]
    assert "no sandbox for this one" in reward.problems[0]
    with pytest.raises(SandboxError, match="no sandbox for this one"):
        await _scores(reward, "broken", "broken 2")


async def test_one_program_is_run_once() -> None:
    _Flaky.runs = 0
    reward = CodeTests("assert f() == 1", sandbox=_Flaky())
    program = "def f(): return 1"
    assert await _scores(reward, program, f"Sure:\n```python\n{program}\n```", program, f"{program}\n") == [1.0] * 4
    assert _Flaky.runs == 1


async def test_a_program_that_hangs_costs_its_own_time_only(sandbox: Sandbox) -> None:
    reward = CodeTests("assert f(0) == 0\nassert f(1) == 1", timeout=0.5, sandbox=sandbox)
    began = time.monotonic()
    hanging = "def f(x):\n    while x: pass\n    return x"
    assert await _scores(reward, hanging, "def f(x): return x") == [pytest.approx(1 / 3), 1.0]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("body", ["canonical_solution", "return None"])
async def test_humaneval(body: str, sandbox: Sandbox) -> None:
    """All canonical solutions get 1, and no body that returns None does."""
    if not HUMANEVAL.exists():
        pytest.skip(f"there is no {HUMANEVAL}")
    tasks = [json.loads(line) for line in HUMANEVAL.read_text().splitlines()]
    began = time.monotonic()
    verdicts = await asyncio.gather(
        *(
            _scores(
                CodeTests(task["test"], task["prompt"], task["entry_point"], timeout=30.0, sandbox=sandbox),
                task.get(body, f"    {body}\n"),
            )
            for task in tasks
        )
    )
    seconds = time.monotonic() - began
    print(f"\nHumanEval, {len(tasks)} programs ({body}): {seconds:.1f} s, {len(tasks) / seconds:.0f} a second")
    scores = [verdict or 0.0 for (verdict,) in verdicts]
    assert len(scores) == 164
    if body == "canonical_solution":
        assert [task["task_id"] for task, score in zip(tasks, scores, strict=True) if score != 1.0] == []
    else:
        assert max(scores) < 1.0


def test_it_keeps_the_contract_of_rewards(sandbox: Sandbox) -> None:
    texts = ("def f(x): return x * x", "```python\ndef f(x): return 9\n```", "def f(x): return 0", "No idea.", "")
    check_reward(lambda: CodeTests("assert f(3) == 9", sandbox=sandbox), texts=texts, examples=8)
