"""What every reward must do, whatever it judges; `check_reward` puts any reward through it. Needs hypothesis.

def test_my_reward() -> None:
    check_reward(MyReward)
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from backends import Completion, Prompt
from rewards.base import Reward, checked_verdicts
from rewards.errors import RewardError

TEXTS = ("#### 1", "so #### 1", "#### 2", r"\boxed{2}", "the answer is 3.", "no number", "")
"""Responses to judge, beside random ones."""


def completion_lists(texts: Sequence[str] = TEXTS) -> st.SearchStrategy[list[Completion]]:
    """Return groups of completions: given texts and random ones, failed draws, weights of all sizes."""
    return st.lists(
        st.builds(
            Completion,
            text=st.sampled_from(texts) | st.text(max_size=20),
            finish_reason=st.sampled_from(["stop", "length", "error"]),
            log_weight=st.sampled_from([0.0, math.log(2), -3.0, 1e6, -1e6, -math.inf]),
        ),
        max_size=8,
    )


def check_reward(
    make: Callable[[], Reward], *, texts: Sequence[str] = TEXTS, prompt: Prompt = "q", examples: int = 60
) -> None:
    """Check a reward, made anew for each check, against the contract of `Reward`.

    One verdict for each completion, in order, as `Reward.score` says: a float or None, always None for a failed draw.
    Nothing that was given is changed. A permutation of the group permutes the verdicts and does nothing else. A
    cancelled call leaves no task behind and the reward usable. Closing twice is harmless.

    Args:
        make: Makes the reward.
        texts: Responses that it can judge.
        prompt: What they respond to.
        examples: Random groups to try; fewer for slow rewards.

    Raises:
        AssertionError: The reward breaks the contract.
    """
    _check_any_group(make, texts, prompt, examples)
    group = [Completion(text=text) for text in texts]
    asyncio.run(_check_prompt_untouched(make(), prompt, group))
    asyncio.run(_check_cancellation(make(), prompt, group))
    asyncio.run(_check_closing(make()))


def _check_any_group(make: Callable[[], Reward], texts: Sequence[str], prompt: Prompt, examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(completion_lists(texts), st.randoms(use_true_random=False))
    def any_group(group: list[Completion], random: Any) -> None:
        order = list(range(len(group)))
        random.shuffle(order)
        before = list(group)
        verdicts = asyncio.run(_score(make(), prompt, group))
        assert group == before, "the list of completions was changed"
        assert isinstance(verdicts, list), "the verdicts are no list"
        try:
            assert checked_verdicts(verdicts, len(group), make().label) == verdicts
        except RewardError as error:
            raise AssertionError(str(error)) from error
        assert all(v is None or type(v) is float for v in verdicts), "a verdict is no float"
        failed = [c.finish_reason == "error" for c in group]
        assert all(v is None for v, f in zip(verdicts, failed, strict=True) if f), "a failed draw has a verdict"
        shuffled = asyncio.run(_score(make(), prompt, tuple(group[i] for i in order)))
        assert shuffled == [verdicts[i] for i in order], "verdicts depend on the order"
        reward = make()
        for completion in group:
            answer = reward.answer(completion)
            assert answer is None or (answer and answer == answer.strip()), "an answer is empty or padded"
        asyncio.run(reward.aclose())

    any_group()


async def _score(reward: Reward, prompt: Prompt, group: Sequence[Completion]) -> list[float | None]:
    try:
        return await reward.session().score(prompt, group)
    finally:
        await reward.aclose()


async def _check_prompt_untouched(reward: Reward, prompt: Prompt, group: Sequence[Completion]) -> None:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    before = copy.deepcopy(messages)
    await _score(reward, messages, group)
    assert messages == before, "the prompt was changed"


async def _check_cancellation(reward: Reward, prompt: Prompt, group: Sequence[Completion]) -> None:
    session = reward.session()
    others = asyncio.all_tasks()
    task = asyncio.create_task(session.score(prompt, group))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled() or task.exception() is None, "a cancelled call raised something else"
    assert asyncio.all_tasks() <= others, "a cancelled call left tasks behind"
    assert len(await _score(reward, prompt, group)) == len(group), "unusable after a cancelled call"


async def _check_closing(reward: Reward) -> None:
    await reward.aclose()
    await reward.aclose()
