from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import Completion
from rewards import JSONSchema, Regex, RewardError, RewardSpecError, RewardTimeoutError, build
from rewards.shared_workers import PATIENCE
from rewards.workers import DEFAULT_SIZE


async def test_found_anywhere_or_in_full() -> None:
    group = [Completion(text=text) for text in ("id 42", " 42 ", "none", "A\nID: 7")]
    assert await build(r"regex:pattern=\d+").score("q", group) == [1, 1, 0, 1]
    assert await build(r"regex:pattern=\d+,full=true").score("q", group) == [0, 1, 0, 0]
    assert await build(r"regex:pattern=^id: \d$,ignore_case=true").score("q", group) == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "wrong",
    ["(", "[a", "*", "(?P<a>x)(?P<a>y)", "a{2,1}", "(" * 1500, "a{99999999999999999999}", f"a{{{'9' * 1900}}}"],
    ids=lambda each: each[:20],
)
def test_what_is_no_pattern_is_refused(wrong: str) -> None:
    with pytest.raises(RewardSpecError, match="is no regular expression"):
        Regex(wrong)


@pytest.mark.parametrize("slow", ["(|)" * 26 + "(?!)", "(a?|b?)" * 30 + "(?!$)"], ids=["empty", "branches"])
async def test_a_pattern_is_compiled_and_searched_for_by_workers_alone(
    slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_it(*args: Any) -> None:
        raise AssertionError("compiled in this process")

    JSONSchema({})  # What it imports compiles patterns of its own.
    with monkeypatch.context() as patch:
        patch.setattr(re, "compile", compile_it)
        reward = Regex(slow)
        JSONSchema({"pattern": slow})
        Regex("(?i)" + "[a-z\u0100-\uffff]" * 200)
    with pytest.raises(RewardTimeoutError, match="took longer than 1 s of processor time"):
        await reward.score("q", [Completion(text="")])


def test_a_long_pattern_is_refused() -> None:
    Regex("a" * 2000)
    with pytest.raises(RewardSpecError, match="the pattern has 2001 characters; allowed: at most 2000"):
        Regex("a" * 2001)


async def test_what_only_the_compiler_finds_wrong_shows_in_the_first_verdict() -> None:
    with pytest.raises(RewardError, match="look-behind requires fixed-width"):
        await Regex("(?<=a*)b").score("q", [Completion(text="ab")])


async def test_a_pattern_that_takes_too_long_twice_is_given_up_for_the_rest_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched = []
    call = Regex.workers.call

    async def counted(*args: Any, text: str) -> Any:
        searched.append(text)
        return await call(*args, text=text)

    monkeypatch.setattr(Regex.workers, "call", counted)
    reward = Regex("^(a+)+$")
    run = reward.session()
    evil = [Completion(text="a" * 40 + "!" * n) for n in range(1, 20)]
    assert await run.score("q", [Completion(text="aaa"), *evil]) == [1, *[None] * len(evil)]
    assert len(searched) <= 1 + PATIENCE + DEFAULT_SIZE - 1
    assert any("searching for a pattern is given up in this run, after" in problem for problem in run.problems)
    searched.clear()
    with pytest.raises(RewardError, match="given up in this run"):
        await run.score("q", [Completion(text="aaaa")])
    assert not searched
    assert await reward.session().score("q", [Completion(text="aaaa")]) == [1]


async def test_a_search_that_would_never_end_gives_no_verdict() -> None:
    evil, good = Completion(text="a" * 40 + "!"), Completion(text="aaa")
    began = time.perf_counter()
    reward = Regex("^(a+)+$").session()
    assert await reward.score("q", [evil, good]) == [None, 1]
    assert "took longer than 1 s of processor time" in reward.problems[0]
    with pytest.raises(RewardTimeoutError):
        await Regex("^(a+)+$").score("q", [evil])
    assert time.perf_counter() - began < 60


@given(st.text(max_size=30))
async def test_any_text_has_a_verdict(text: str) -> None:
    assert await Regex("[a-m]").score("q", [Completion(text=text)]) == [float(any("a" <= c <= "m" for c in text))]
