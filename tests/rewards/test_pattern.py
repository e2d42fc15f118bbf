from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import Completion
from rewards import Regex, RewardSpecError, RewardTimeoutError, build


async def test_found_anywhere_or_in_full() -> None:
    group = [Completion(text=text) for text in ("id 42", " 42 ", "none", "A\nID: 7")]
    assert await build(r"regex:pattern=\d+").score("q", group) == [1, 1, 0, 1]
    assert await build(r"regex:pattern=\d+,full=true").score("q", group) == [0, 1, 0, 0]
    assert await build(r"regex:pattern=^id: \d$,ignore_case=true").score("q", group) == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "pattern", ["(", "[a", "*", "(?P<a>x)(?P<a>y)", "a{2,1}", "(" * 5000, "a{99999999999999999999}"]
)
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(RewardSpecError, match="is no regular expression"):
        Regex(pattern)


async def test_a_search_that_would_never_end_gives_no_verdict() -> None:
    evil, good = Completion(text="a" * 40 + "!"), Completion(text="aaa")
    began = time.perf_counter()
    reward = Regex("^(a+)+$").session()
    assert await reward.score("q", [evil, good]) == [None, 1]
    assert "took longer than 1 s of processor time" in reward.problems[0]
    with pytest.raises(RewardTimeoutError):
        await Regex("^(a+)+$").score("q", [evil])
    assert time.perf_counter() - began < 20


@given(st.text(max_size=30))
async def test_any_text_has_a_verdict(text: str) -> None:
    assert await Regex("[a-m]").score("q", [Completion(text=text)]) == [float(any("a" <= c <= "m" for c in text))]
