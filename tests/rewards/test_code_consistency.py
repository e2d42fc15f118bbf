"""Programs judged by agreement on what they do."""

from __future__ import annotations

import math
from typing import Any

import pytest

import rewards
from backends import Completion
from rewards import RewardError, RewardSpecError
from rewards.code import CodeConsistency
from rewards.sandbox import Sandbox, SandboxError
from rewards.sandbox.unsafe import Unsafe
from rewards.testing import check_reward
from tests.rewards.sandbox.available import available

_PROMPT = 'def double(x):\n    """Double it.\n\n    >>> double(1)\n    2\n    >>> double([1])\n    [1, 1]\n    """\n'


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return available("auto")


async def _scores(reward: rewards.Reward, *texts: str, prompt: Any = _PROMPT) -> list[float | None]:
    return await reward.score(prompt, [Completion(text=text) for text in texts])


async def test_programs_vote_by_what_they_do(sandbox: Sandbox) -> None:
    texts = [
        "    return x + x",
        "def double(x):\n    return 2 * x",
        "```python\ndef double(x):\n    return x * 2.0 if isinstance(x, int) else [*x, *x]\n```",
        "    return x",
        "    return (x)",
        "    return [x]",
    ]
    assert await _scores(CodeConsistency(sandbox=sandbox), *texts) == [1, 1, 1, 0, 0, 0]


async def test_what_the_examples_say_of_the_results_does_not_count(sandbox: Sandbox) -> None:
    assert await _scores(CodeConsistency(sandbox=sandbox), "    return x", "    return 1 * x", "    return 2 * x") == [
        1,
        1,
        0,
    ]


async def test_programs_that_do_not_load_or_always_fail_have_no_vote(sandbox: Sandbox) -> None:
    texts = ["No idea.", "No idea!", "    raise ValueError", "    raise ValueError(x)", "    while True: pass", "    y"]
    reward = CodeConsistency(sandbox=sandbox, timeout=0.5)
    assert await _scores(reward, *texts, "    return 2 * x", "    return x + x") == [0] * 6 + [1, 1]
    assert await _scores(reward, *texts) == [0] * 6


async def test_failing_on_some_inputs_is_behavior(sandbox: Sandbox) -> None:
    reward = CodeConsistency([[1], [0]], entry_point="f", sandbox=sandbox)
    texts = ["def f(x): return 1 / x", "def f(x): return x ** -1", "def f(x): return 1 / x if x else None"]
    assert await _scores(reward, *texts, prompt="") == [1, 1, 0]


async def test_inputs_can_be_given_as_arguments_or_as_text(sandbox: Sandbox) -> None:
    texts = ["def f(x, y=0): return {x, y}", "def f(x, y=0): return frozenset([y, x])", "def f(x, y=0): return [x, y]"]
    for inputs in ([[1], [1, 2]], ["f(1)", "f(x=(1, 2), y=2.5)"], [[1], "f(2)"]):
        reward = CodeConsistency(inputs, entry_point="f", sandbox=sandbox)
        assert await _scores(reward, *texts, prompt="Write f.") == [1, 1, 0]


async def test_the_prompt_may_be_given_or_be_a_chat(sandbox: Sandbox) -> None:
    texts = ["    return x + x", "    return 2 * x", "    return x"]
    assert await _scores(CodeConsistency(prompt=_PROMPT, sandbox=sandbox), *texts, prompt="Go on.") == [1, 1, 0]
    chat = [{"role": "user", "content": f"Complete:\n```python\n{_PROMPT}```"}]
    assert await _scores(CodeConsistency(sandbox=sandbox), *texts, prompt=chat) == [1, 1, 0]


async def test_votes_have_weights_and_failed_draws_none(sandbox: Sandbox) -> None:
    group = [
        Completion(text="    return x", log_weight=math.log(3)),
        Completion(text="    return 1 * x", log_weight=-math.inf),
        Completion(text="    return 2 * x"),
        Completion(text="    return x + x"),
        Completion(text="    return x", finish_reason="error"),
    ]
    assert await CodeConsistency(sandbox=sandbox).score(_PROMPT, group) == [0, 0, 1, 1, None]


async def test_votes_can_last_for_a_run(sandbox: Sandbox) -> None:
    run = CodeConsistency(accumulate=True, sandbox=sandbox).session()
    assert await _scores(run, "    return x", "    return x", "    return x") == [1, 1, 1]
    run.begin_step()
    assert await _scores(run, "    return 2 * x", "    return x + x", "    return 1 * x") == [0, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": []}, "inputs is empty"),
        ({"prompt": "Write a function."}, "nothing to run"),
        ({"prompt": "def f(x):\n    pass\n"}, "'>>> f\\(1\\)'"),
        ({"inputs": [[1]], "prompt": ""}, "say by entry_point"),
        ({"entry_point": "f()"}, "name of a function"),
        ({"timeout": -1}, "timeout"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardSpecError, match=message):
        CodeConsistency(**arguments, sandbox="unsafe")


async def test_without_anything_to_run_there_is_no_verdict(sandbox: Sandbox) -> None:
    with pytest.raises(RewardError, match="nothing to run"):
        await _scores(CodeConsistency(sandbox=sandbox), "    return x", prompt="Write a function.")
    with pytest.raises(RewardError, match="no input is an expression"):
        await _scores(CodeConsistency(["f(", "x = 1"], sandbox=sandbox), "def f(): pass", prompt="")


class _Flaky(Unsafe):
    runs = 0

    async def run(self, source: str, *arguments: str, **options: Any) -> Any:
        type(self).runs += 1
        if b"broken" in options["stdin"]:
            raise SandboxError("no sandbox for this one")
        return await super().run(source, *arguments, **options)


async def test_a_sandbox_that_fails_costs_a_verdict_and_no_more() -> None:
    reward = CodeConsistency(sandbox=_Flaky())
    texts = ["    return x", "    return broken", "    return x", "    return 2 * x"]
    assert await _scores(reward, *texts) == [1, None, 1, 0]
    assert _Flaky.runs == 3, "one run for each program"
    assert "no sandbox for this one" in reward.problems[0]
    with pytest.raises(SandboxError):
        await _scores(reward, "    broken")


async def test_it_is_built_by_name(sandbox: Sandbox) -> None:
    reward = rewards.build({"name": "code_consistency", "inputs": [[1], "f(2)"], "entry_point": "f"})
    assert await _scores(reward, "def f(x): return x", "def f(x): return -x", "f = lambda x: x", prompt="") == [1, 0, 1]
    assert reward.answer(Completion(text="```\nf = abs\n```")) == "f = abs"
    assert reward.answer(Completion(text=" ")) is None


def test_it_keeps_the_contract_of_rewards(sandbox: Sandbox) -> None:
    texts = ("    return 2 * x", "    return x + x", "    return x", "    return 1 * x", "No idea.", "")
    check_reward(lambda: CodeConsistency(sandbox=sandbox), texts=texts, prompt=_PROMPT, examples=8)
