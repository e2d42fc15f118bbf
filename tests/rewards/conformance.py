"""What every reward must do, whatever it judges; `check_reward` puts any reward through it."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Callable, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from backends import Completion, Prompt
from rewards import Reward

TEXTS = ["#### 1", "so #### 1", "#### 2", r"\boxed{2}", "the answer is 3.", "no number", ""]

completion_lists = st.lists(
    st.builds(
        Completion,
        text=st.sampled_from(TEXTS) | st.text(max_size=20),
        finish_reason=st.sampled_from(["stop", "length", "error"]),
        log_weight=st.sampled_from([0.0, math.log(2), -3.0, 1e6, -1e6, -math.inf]),
    ),
    max_size=8,
)


def check_reward(make: Callable[[], Reward]) -> None:
    """Check a reward, made anew for each check, against the contract of `Reward`.

    Raises:
        AssertionError: The reward breaks the contract.
    """
    _check_any_group(make)
    asyncio.run(_check_prompt_untouched(make()))
    asyncio.run(_check_cancellation(make()))
    asyncio.run(_check_closing(make()))


def _check_any_group(make: Callable[[], Reward]) -> None:
    @settings(max_examples=60, deadline=None)
    @given(completion_lists, st.randoms(use_true_random=False))
    def any_group(group: list[Completion], random: object) -> None:
        order = list(range(len(group)))
        random.shuffle(order)  # type: ignore[attr-defined]
        before = list(group)
        verdicts = asyncio.run(make().session().score("q", group))
        assert group == before, "the list of completions was changed"
        assert isinstance(verdicts, list)
        assert len(verdicts) == len(group)
        assert all(verdict is None or (type(verdict) is float and math.isfinite(verdict)) for verdict in verdicts)
        assert all(v is None for v, c in zip(verdicts, group, strict=True) if c.finish_reason == "error")
        shuffled = asyncio.run(make().session().score("q", tuple(group[i] for i in order)))
        assert shuffled == [verdicts[i] for i in order], "verdicts depend on the order"
        for completion in group:
            answer = make().answer(completion)
            assert answer is None or (answer and answer == answer.strip())

    any_group()


async def _check_prompt_untouched(reward: Reward) -> None:
    prompt: Prompt = [{"role": "user", "content": "1 + 1?"}]
    before = copy.deepcopy(prompt)
    await reward.session().score(prompt, [Completion(text=text) for text in TEXTS])
    assert prompt == before


async def _check_cancellation(reward: Reward) -> None:
    group: Sequence[Completion] = [Completion(text=text) for text in TEXTS]
    session = reward.session()
    others = asyncio.all_tasks()
    task = asyncio.create_task(session.score("q", group))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled() or task.exception() is None
    assert asyncio.all_tasks() <= others, "a cancelled call left tasks behind"
    assert len(await reward.session().score("q", group)) == len(group), "unusable after a cancelled call"


async def _check_closing(reward: Reward) -> None:
    await reward.aclose()
    await reward.aclose()
