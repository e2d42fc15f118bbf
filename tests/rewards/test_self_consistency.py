from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import Completion
from rewards import RewardError, SelfConsistency, build


def _group(*answers: object, weights: dict[int, float] | None = None) -> list[Completion]:
    log_weights = weights or {}
    return [Completion(text=f"#### {answer}", log_weight=log_weights.get(i, 0.0)) for i, answer in enumerate(answers)]


async def test_plurality_gets_one_and_others_nothing() -> None:
    assert await SelfConsistency().score("q", _group(1, 2, 2, 3, 2, 3)) == [0, 1, 1, 0, 1, 0]


async def test_answers_vote_together_however_they_are_written() -> None:
    texts = [r"\boxed{1{,}234}", "#### 1,234.0", "it is 1234.", "#### 5", "#### 5"]
    assert await SelfConsistency().score("q", [Completion(text=text) for text in texts]) == [1, 1, 1, 0, 0]


async def test_votes_count_by_weight() -> None:
    group = _group(1, 1, 1, 2, 2, weights={3: math.log(2.0)})
    assert await SelfConsistency().score("q", group) == [1, 1, 1, 1, 1]
    group = _group(1, 1, 1, 2, 2, weights={3: math.log(2.1)})
    assert await SelfConsistency().score("q", group) == [0, 0, 0, 1, 1]


async def test_an_answer_of_one_draw_is_no_majority() -> None:
    assert await SelfConsistency().score("q", _group(1, 2, 3)) == [0, 0, 0]
    assert await SelfConsistency().score("q", _group(1)) == [0]


async def test_a_heavy_draw_on_its_own_neither_wins_nor_voids_the_agreement_of_others() -> None:
    assert await SelfConsistency().score("q", _group(1, 2, 2, weights={0: 50.0})) == [0, 1, 1]


async def test_ties_are_won_by_all() -> None:
    assert await SelfConsistency().score("q", _group(1, 1, 2, 2, 3)) == [1, 1, 1, 1, 0]
    # Equal sums that float arithmetic makes unequal: 0.1 + 0.2 and 0.3 (as 0.15 twice).
    weights = {0: math.log(0.1), 1: math.log(0.2), 2: math.log(0.15), 3: math.log(0.15)}
    assert await SelfConsistency().score("q", _group(1, 1, 2, 2, weights=weights)) == [1, 1, 1, 1]


async def test_no_answer_is_no_vote_but_a_verdict() -> None:
    group = [*_group(1, 1), *[Completion(text="no idea")] * 3]
    assert await SelfConsistency().score("q", group) == [1, 1, 0, 0, 0]
    assert await SelfConsistency().score("q", [Completion(text="no idea")] * 3) == [0, 0, 0]
    assert await SelfConsistency().score("q", [Completion(text="#### $")] * 3) == [0, 0, 0]


async def test_failed_draws_have_neither_vote_nor_verdict() -> None:
    failed = Completion(text="#### 2", finish_reason="error", log_weight=math.nan)
    assert await SelfConsistency().score("q", [failed, *_group(1, 2, 1), failed]) == [None, 1, 0, 1, None]
    assert await SelfConsistency().score("q", [failed, *_group(2)]) == [None, 0]


async def test_answers_cut_off_by_length_vote() -> None:
    group = [Completion(text="#### 2", finish_reason="length")] * 2
    assert await SelfConsistency().score("q", group) == [1, 1]


@pytest.mark.parametrize("shift", [1e6, -1e6])
async def test_extreme_weights_do_not_overflow(shift: float) -> None:
    weights = {0: shift, 1: shift, 2: shift + 1, 3: shift, 4: 0.0}
    expected = [0, 0, 1, 1, 0]
    assert await SelfConsistency().score("q", _group(1, 1, 2, 2, 3, weights=weights)) == expected


async def test_light_votes_are_told_apart_beside_a_heavy_draw() -> None:
    group = _group(9, 1, 1, 2, 2, weights={0: 1e6, 1: 1.0})
    assert await SelfConsistency().score("q", group) == [0, 1, 1, 0, 0]


async def test_weight_zero_is_no_draw() -> None:
    group = _group(1, 1, 2, 2, 2, weights={0: -math.inf, 4: -math.inf})
    assert await SelfConsistency().score("q", group) == [0, 0, 1, 1, 1]
    assert await SelfConsistency().score("q", _group(1, 1, weights={0: -math.inf, 1: -math.inf})) == [0, 0]


@pytest.mark.parametrize("log_weight", [math.nan, math.inf])
@pytest.mark.parametrize("text", ["#### 1", "no answer"])
async def test_weights_that_are_no_weights_are_refused(log_weight: float, text: str) -> None:
    with pytest.raises(RewardError, match="log-weight"):
        await SelfConsistency().score("q", [*_group(1, 1), Completion(text=text, log_weight=log_weight)])


@given(st.lists(st.tuples(st.integers(1, 3), st.floats(-30, 30)), max_size=12), st.randoms(use_true_random=False))
async def test_order_does_not_matter(votes: list[tuple[int, float]], random: object) -> None:
    group = [Completion(text=f"#### {answer}", log_weight=weight) for answer, weight in votes]
    order = list(range(len(group)))
    random.shuffle(order)  # type: ignore[attr-defined]
    verdicts = await SelfConsistency().score("q", group)
    assert await SelfConsistency().score("q", [group[i] for i in order]) == [verdicts[i] for i in order]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), max_size=12))
async def test_weights_mean_multiplicity(votes: list[tuple[int, int]]) -> None:
    """A verdict is what counting says, where a completion of weight n counts n times."""
    group = [Completion(text=f"#### {a}", log_weight=math.log(n) if n else -math.inf) for a, n in votes]
    counts = {answer: sum(n for a, n in votes if a == answer) for answer, _ in votes}
    shared = {answer: n for answer, n in counts.items() if sum(a == answer and m > 0 for a, m in votes) > 1}
    expected = [float(a in shared and shared[a] == max(shared.values())) for a, _ in votes]
    assert await SelfConsistency().score("q", group) == expected


async def test_default_has_no_memory() -> None:
    reward = SelfConsistency()
    assert type(reward.session()) is SelfConsistency
    await reward.score("q", _group(1, 1, 1))
    assert await reward.score("q", _group(2, 2, 1)) == [1, 1, 0]


async def test_accumulated_votes_last_for_one_run() -> None:
    reward = SelfConsistency(accumulate=True)
    run = reward.session()
    assert await run.score("q", _group(1, 1, 1, 2)) == [1, 1, 1, 0]
    run.begin_step()
    assert await run.score("q", _group(2, 2, 1)) == [0, 0, 1]
    run.begin_step()
    assert await run.score("q", _group(2, 2)) == [1, 1]
    assert await reward.session().score("q", _group(2, 2, 1)) == [1, 1, 0]
    assert await reward.score("q", _group(2, 2, 1)) == [1, 1, 0]
    assert run.session() is run
    assert run.name == "self_consistency"
    assert run.answer(Completion(text="#### 7")) == "7"


async def test_a_group_that_grows_within_a_step_votes_once() -> None:
    run = SelfConsistency(accumulate=True).session()
    run.begin_step()
    assert await run.score("q", _group(1, 1)) == [1, 1]
    assert await run.score("q", _group(1, 1, 2, 2, 2)) == [0, 0, 1, 1, 1], "not four votes for the first answer"


async def test_rounding_of_importance_weights_breaks_no_tie() -> None:
    group = [
        Completion(text=f"#### {n}", log_weight=w) for n, w in ((1, 0.0), (1, 1e-6), (2, -1e-6), (2, 0.0), (3, 0.0))
    ]
    assert await SelfConsistency().score("q", group) == [1, 1, 1, 1, 0]


async def test_a_refused_group_leaves_no_votes_behind() -> None:
    run = SelfConsistency(accumulate=True).session()
    with pytest.raises(RewardError):
        await run.score("q", _group(1, 1, 1, 3, weights={3: math.nan}))
    assert await run.score("q", _group(2, 2, 1)) == [1, 1, 0]


async def test_own_extractor() -> None:
    reward = SelfConsistency(extractor=lambda text: text.rpartition("Answer:")[2] or None)
    group = [Completion(text="9 Answer: B"), Completion(text="8 Answer: B."), Completion(text="Answer: A")]
    assert await reward.score("q", group) == [1, 1, 0]
    assert reward.answer(group[1]) == "B."


async def test_failing_extractor_is_a_reward_error() -> None:
    def fail(text: str) -> str:
        raise KeyError("oops")

    with pytest.raises(RewardError, match="extractor failed: KeyError: 'oops'"):
        await SelfConsistency(extractor=fail).score("q", _group(1))


def test_answer_is_as_written() -> None:
    assert SelfConsistency().answer(Completion(text="####  1,234.0 ")) == "1,234.0"
    assert SelfConsistency().answer(Completion(text="no idea")) is None


async def test_empty_group() -> None:
    assert await build("self_consistency").score("q", []) == []
