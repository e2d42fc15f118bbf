from __future__ import annotations

import asyncio

from ets_arithmetic_reward import Arithmetic

from backends import Completion
from rewards.testing import check_reward


def test_it_keeps_the_contract() -> None:
    check_reward(Arithmetic, texts=["1 + 1 = 2", "2 * 3 = 7", "nothing"])


def test_right_and_wrong_equations() -> None:
    group = [Completion(text=text) for text in ("1 + 1 = 2\n2 * 3 = 7", "no working")]
    assert asyncio.run(Arithmetic().score("q", group)) == [0.5, None]
    assert asyncio.run(Arithmetic(tolerance=1).score("q", group)) == [1.0, None]
