from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import Completion, Prompt
from rewards import MathAnswer, Reward, RewardError, RewardSpecError, RewardTimeoutError, SelfConsistency, build
from rewards.combination import Clip, Combination, Gate, Product, Rescale, WeightedSum
from rewards.testing import check_reward

FAILED = Completion(text="", finish_reason="error")

specs = st.recursive(
    st.sampled_from(["self_consistency", "math_answer:gold=1", {"name": "math_answer", "gold": "2"}]),
    lambda inner: st.one_of(
        st.builds(
            lambda a, b, w: _spec("weighted_sum", rewards=[a, b], weights=[w, -1]), inner, inner, st.floats(-2, 2)
        ),
        st.builds(lambda a, b: _spec("product", rewards=[a, b]), inner, inner),
        st.builds(lambda a, b: _spec("gate", condition=a, reward=b, otherwise=-0.5), inner, inner),
        st.builds(lambda a, low: _spec("clip", reward=a, low=low), inner, st.floats(-1, 1)),
        st.builds(lambda a, scale: _spec("rescale", reward=a, scale=scale, shift=0.25), inner, st.floats(-3, 3)),
    ),
    max_leaves=6,
)


def _spec(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, **arguments}


def _group(*texts: str) -> list[Completion]:
    return [Completion(text=text) for text in texts]


def number(completion: Completion) -> float | None:
    """Reward the number that the text is, None for other texts."""
    try:
        value = float(completion.text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def length(completion: Completion) -> float:
    return len(completion.text)


class Recorder(Reward):
    """Judges by a function and notes what happens to it."""

    def __init__(self, judge: Callable[[Completion], float | None] = length, **attributes: Any) -> None:
        self.judge = judge
        self.events: list[str] = []
        self.seen: list[list[str]] = []
        for name, value in attributes.items():
            setattr(self, name, value)

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        self.seen.append([completion.text for completion in completions])
        return [self.judge(completion) for completion in completions]

    def answer(self, completion: Completion) -> str | None:
        return completion.text.partition("=")[2] or None

    def session(self) -> Reward:
        self.events.append("session")
        session = Recorder(self.judge)
        session.events = self.events
        return session

    def begin_step(self) -> None:
        self.events.append("step")

    async def aclose(self) -> None:
        self.events.append("closed")


class TestSum:
    async def test_adds_what_the_parts_say_times_their_weights(self) -> None:
        reward = WeightedSum([number, length], [2, -0.5])
        assert await reward.score("q", [*_group("7", "-1.5"), FAILED]) == [13.5, -5, None]

    async def test_no_verdict_of_a_part_is_none_at_all_and_not_zero(self) -> None:
        assert await WeightedSum([number, length], [1, 1]).score("q", _group("x", "1")) == [None, 2]
        assert await WeightedSum([length, number], [1, 0]).score("q", _group("x")) == [None]

    @pytest.mark.parametrize("text", ["1.7e308", "-1.7e308"])
    async def test_numbers_that_grow_too_large_are_refused_and_no_veto(self, text: str) -> None:
        with pytest.raises(RewardError, match="too large to be combined"):
            await WeightedSum([number, number], [1, 1]).score("q", _group(text))
        with pytest.raises(RewardError, match="too large to be combined"):
            await Rescale(number, scale=1e10).score("q", _group(text))

    @pytest.mark.parametrize("weights", [[], [1], [1, 1, 1]])
    def test_there_is_one_weight_for_each_reward(self, weights: list[float]) -> None:
        with pytest.raises(RewardSpecError, match=f"2 rewards need as many weights, not {len(weights)}"):
            WeightedSum([number, length], weights)


class TestProduct:
    async def test_multiplies_what_the_parts_say(self) -> None:
        assert await Product([number, length]).score("q", _group("3", "-1.5", "x")) == [3, -6, None]


class TestGate:
    async def test_rewards_only_those_that_pass(self) -> None:
        reward = Gate(number, length, threshold=2)
        assert await reward.score("q", [*_group("1", "2", "3", "40"), FAILED]) == [0, 0, 1, 2, None]
        assert await Gate(number, length, otherwise=-1).score("q", _group("0", "5")) == [-1, 1]

    async def test_votes_are_counted_among_those_that_pass(self) -> None:
        group = _group("#### 1", "#### 1", "#### 1", "valid #### 2", "valid #### 2", "valid #### 3")
        reward = Gate(lambda completion: completion.text.startswith("valid"), SelfConsistency())
        assert await reward.score("q", group) == [0, 0, 0, 1, 1, 0]

    async def test_no_verdict_of_the_reward_matters_only_where_it_is_asked(self) -> None:
        reward = Recorder(lambda completion: None)
        assert await Gate(number, reward).score("q", _group("0", "1", "x")) == [0, None, None]
        assert reward.seen == [["1"]]

    async def test_a_reward_that_is_not_needed_is_not_asked(self) -> None:
        reward = Recorder(problems=["of the last call"])
        gate = Gate(number, reward)
        assert await gate.score("q", _group("2")) == [1]
        assert gate.problems == ["of the last call"]
        assert await gate.score("q", _group("0", "-1")) == [0, 0]
        assert reward.seen == [["2"]]
        assert gate.problems == []

    def test_answer_is_the_rewards(self) -> None:
        assert Gate("math_answer:gold=1", Recorder()).answer(Completion(text="1 x=2")) == "2"
        assert Gate("math_answer:gold=1", length).answer(Completion(text="1")) is None


class TestClipAndRescale:
    @pytest.mark.parametrize(
        ("limits", "expected"),
        [
            ({"low": -1, "high": 2}, [-1, 0.5, 2, None]),
            ({"high": 2}, [-3, 0.5, 2, None]),
            ({"low": 0}, [0, 0.5, 9, None]),
        ],
    )
    async def test_clip(self, limits: dict[str, float], expected: list[float | None]) -> None:
        assert await Clip(number, **limits).score("q", _group("-3", "0.5", "9", "x")) == expected

    @pytest.mark.parametrize(
        ("limits", "message"), [({}, "at least one of low and high"), ({"low": 1, "high": 0}, "low must not be above")]
    )
    def test_a_range_must_be_one(self, limits: dict[str, float], message: str) -> None:
        with pytest.raises(RewardSpecError, match=message):
            Clip(number, **limits)

    async def test_rescale(self) -> None:
        assert await Rescale(number, scale=-2, shift=1).score("q", _group("3", "0", "x")) == [-5, 1, None]


def vetoing(completion: Completion) -> float | None:
    """Forbid "no" and read others as `number`."""
    return -math.inf if completion.text == "no" else number(completion)


class TestVetoes:
    """Minus infinity: the response must not be chosen."""

    GROUP = _group("no", "2", "x")

    @pytest.mark.parametrize(
        ("reward", "expected"),
        [
            (WeightedSum([vetoing, length], [1, 1]), [-math.inf, 3, None]),
            (WeightedSum([vetoing, length], [-1, 1]), [-math.inf, -1, None]),
            (WeightedSum([vetoing, length], [0, 1]), [2, 1, None]),
            (WeightedSum([vetoing, number], [1, 1]), [-math.inf, 4, None]),
            (Product([vetoing, lambda completion: 0.0]), [-math.inf, 0, None]),
            (Product([vetoing, lambda completion: -1.0]), [-math.inf, -2, None]),
            (Rescale(vetoing, scale=2, shift=1), [-math.inf, 5, None]),
            (Rescale(vetoing, scale=-2), [-math.inf, -4, None]),
            (Rescale(vetoing, scale=0, shift=1), [1, 1, None]),
            (Clip(vetoing, high=1), [-math.inf, 1, None]),
            (Clip(vetoing, low=-5), [-5, 2, None]),
            (Gate(vetoing, length), [0, 1, None]),
            (Gate(length, vetoing), [-math.inf, 2, None]),
        ],
    )
    async def test_what_a_part_forbids_is_forbidden(self, reward: Reward, expected: list[float | None]) -> None:
        assert await reward.score("q", self.GROUP) == expected
        assert list(reward.problems) == []


class TestSpecifications:
    async def test_nested_in_a_mapping(self) -> None:
        spec = _spec(
            "weighted_sum",
            rewards=["self_consistency", _spec("rescale", reward=_spec("math_answer", gold=2), scale=3)],
            weights=[1, 2],
        )
        assert await build(spec).score("q", _group("1", "1", "2")) == [1, 1, 6]

    async def test_nested_in_a_text(self) -> None:
        reward = build('gate:condition={"name": "math_answer", "gold": 2},reward=self_consistency,otherwise=-1')
        assert await reward.score("q", _group("1", "1", "2", "2.0")) == [-1, -1, 1, 1]
        reward = build(
            'product:rewards=["self_consistency", {"name": "clip", "reward": "math_answer:gold=1", "low": 0.5}]'
        )
        assert await reward.score("q", _group("1", "1", "2")) == [1, 1, 0]

    async def test_objects_functions_and_classes_are_specifications_too(self) -> None:
        reward = build(_spec("product", rewards=[MathAnswer(1), SelfConsistency, length]))
        assert await reward.score("q", _group("1", "1", "2")) == [1, 1, 0]

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            (
                _spec("weighted_sum", rewards=["self_consistency", "nonsense"], weights=[1, 1]),
                r"'weighted_sum': rewards\[1\]: no reward is called 'nonsense'",
            ),
            (
                _spec("gate", condition="self_consistency", reward=_spec("clip", reward="math_answer", low=0)),
                r"'gate': reward: reward 'clip': reward: reward 'math_answer': missing argument 'gold'",
            ),
            ("product:rewards=[]", "'product': the list of rewards is empty"),
            ("product:rewards=self_consistency", "'product': rewards='self_consistency'"),
            (_spec("product", rewards=[3]), "'product': rewards="),
            ('weighted_sum:rewards=["self_consistency"],weights=[NaN]', "'weighted_sum': weights="),
            ('weighted_sum:rewards=["self_consistency"],weights=[true]', "'weighted_sum': weights="),
            ('weighted_sum:rewards=["self_consistency"]', "missing argument 'weights'"),
            ("rescale:reward=self_consistency,scale=1e999", "'rescale': scale="),
        ],
    )
    def test_errors_say_where(self, spec: Any, message: str) -> None:
        with pytest.raises(RewardSpecError, match=message):
            build(spec)

    @pytest.mark.parametrize("value", [math.nan, math.inf, "1", True, None, 10**400])
    def test_numbers_are_finite_numbers(self, value: Any) -> None:
        with pytest.raises(RewardSpecError, match=r"weights\[0\] must be a finite number"):
            WeightedSum([length], [value])
        with pytest.raises(RewardSpecError, match="threshold must be a finite number"):
            Gate(length, length, threshold=value)
        with pytest.raises(RewardSpecError, match="scale must be a finite number"):
            Rescale(length, scale=value)

    @pytest.mark.parametrize("rewards", ["self_consistency", {"name": "self_consistency"}, 3])
    def test_rewards_must_be_a_list(self, rewards: Any) -> None:
        with pytest.raises(RewardSpecError, match="must be a list of rewards"):
            Product(rewards)


@given(specs)
async def test_verdicts_stay_within_the_bounds_that_are_claimed(spec: Any) -> None:
    reward = build(spec)
    for verdict in await reward.score("q", _group("1", "1", "2", "3", "x")):
        assert verdict is not None
        assert reward.maximum is None or verdict <= reward.maximum + 1e-9
        assert reward.minimum is None or verdict >= reward.minimum - 1e-9


@pytest.mark.parametrize(
    ("make", "bounds"),
    [
        (lambda u, o: WeightedSum([u, u], [2, 3]), (0, 5)),
        (lambda u, o: WeightedSum([u, u], [2, -3]), (-3, 2)),
        (lambda u, o: WeightedSum([u, o], [2, 3]), (None, 5)),
        (lambda u, o: WeightedSum([u, o], [2, -3]), (-3, None)),
        (lambda u, o: WeightedSum([o, o], [2, -3]), (None, None)),
        (lambda u, o: WeightedSum([u, length], [2, 1]), (None, None)),
        (lambda u, o: WeightedSum([u, length], [2, 0]), (0, 2)),
        (lambda u, o: WeightedSum([u, u], [1.7e308, 1.7e308]), (0, None)),
        (lambda u, o: Product([u, Rescale(u, scale=4)]), (0, 4)),
        (lambda u, o: Product([u, o]), (None, None)),
        (lambda u, o: Product([Rescale(u, shift=-9), Rescale(u, shift=-9)]), (None, None)),
        (lambda u, o: Gate(o, u), (0, 1)),
        (lambda u, o: Gate(length, u, otherwise=2), (0, 2)),
        (lambda u, o: Gate(u, length), (None, None)),
        (lambda u, o: Clip(u, low=-1, high=0.5), (0, 0.5)),
        (lambda u, o: Clip(length, low=-1, high=2), (-1, 2)),
        (lambda u, o: Clip(length, high=2), (None, 2)),
        (lambda u, o: Rescale(u, scale=-2, shift=1), (-1, 1)),
        (lambda u, o: Rescale(o, scale=-2), (-2, None)),
        (lambda u, o: Rescale(o, scale=2, shift=-3), (None, -1)),
    ],
)
def test_bounds_are_derived_where_they_follow(
    make: Callable[[Reward, Reward], Combination], bounds: tuple[float | None, float | None]
) -> None:
    unit, open_below = Recorder(minimum=0.0, maximum=1.0), Recorder(maximum=1.0)
    reward = make(unit, open_below)
    assert (reward.minimum, reward.maximum) == bounds


def test_what_a_combination_is_follows_from_its_parts() -> None:
    assert Product(["math_answer:gold=1", length]).pointwise
    assert not Product(["math_answer:gold=1", "self_consistency"]).pointwise
    assert not Gate("math_answer:gold=1", "self_consistency").pointwise
    assert not Gate("self_consistency", "math_answer:gold=1").pointwise
    one, other = Recorder(needs=frozenset({"logprobs"})), Recorder(needs=frozenset({"score"}))
    assert Gate(one, Clip(other, low=0)).needs == {"logprobs", "score"}
    assert Product([length]).needs == frozenset()


def test_answer_is_the_first_that_a_part_reads() -> None:
    assert Product([length, Recorder(), "math_answer:gold=1"]).answer(Completion(text="3 x=2")) == "2"
    assert Product([length, Recorder(), "math_answer:gold=1"]).answer(Completion(text="3")) == "3"
    assert Product([length]).answer(Completion(text="3")) is None


async def test_sessions_and_steps_reach_the_parts() -> None:
    parts = [Recorder(), Recorder()]
    reward = Product([parts[0], Clip(parts[1], low=0)])
    session = reward.session()
    session.begin_step()
    assert [part.events for part in parts] == [["session", "step"]] * 2
    assert await session.score("q", _group("ab")) == [4]
    assert [part.seen for part in parts] == [[], []], "a session is judged by sessions"
    assert session.name == "product"


async def test_state_of_one_run_stays_in_it() -> None:
    reward = build('rescale:reward={"name": "self_consistency", "accumulate": true},scale=2')
    run = reward.session()
    assert await run.score("q", _group("1", "1", "1")) == [2, 2, 2]
    run.begin_step()
    assert await run.score("q", _group("2", "2", "1")) == [0, 0, 2]
    assert await reward.session().score("q", _group("2", "2", "1")) == [2, 2, 0]


async def test_only_what_was_built_here_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    async def close(reward: Reward) -> None:
        closed.append(type(reward).__name__)

    monkeypatch.setattr(SelfConsistency, "aclose", close)
    monkeypatch.setattr(MathAnswer, "aclose", close)
    mine = Recorder()
    reward = WeightedSum([mine, "self_consistency", Rescale(mine), MathAnswer(1), SelfConsistency], [1] * 5)
    await reward.session().aclose()
    assert closed == []
    await reward.aclose()
    await reward.aclose()
    assert mine.events == ["session", "session"]
    assert closed == ["SelfConsistency"] * 4


async def test_parts_are_closed_even_if_one_fails_to(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Reward] = []

    async def fail(reward: Reward) -> None:
        closed.append(reward)
        raise OSError("stuck")

    monkeypatch.setattr(SelfConsistency, "aclose", fail)
    with pytest.raises(OSError, match="stuck"):
        await Product(["self_consistency", "self_consistency"]).aclose()
    assert len(closed) == 2


async def test_parts_judge_at_the_same_time() -> None:
    both = asyncio.Barrier(2)

    async def meet(completion: Completion) -> float:
        await both.wait()
        return 2.0

    async with asyncio.timeout(30):
        assert await Product([meet, meet]).score("q", _group("a")) == [4]


async def test_a_failing_part_fails_the_whole_and_is_named() -> None:
    ended = []

    async def hang(completion: Completion) -> float:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(completion.text)
        return 0.0

    async def fail(completion: Completion) -> float:
        raise KeyError("x")

    with pytest.raises(RewardError, match=r"^rewards\[1\]: reward 'fail' failed: KeyError: 'x'") as caught:
        await Product([hang, fail]).score("q", _group("a"))
    assert isinstance(caught.value.__cause__, RewardError)
    assert ended == ["a"]


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (lambda self, prompt, group: [1.0], r"rewards\[0\]: reward 'Recorder' returned 1 values for 2"),
        (lambda self, prompt, group: [math.nan] * 2, r"rewards\[0\]: .* must return finite numbers"),
        (lambda self, prompt, group: None, r"rewards\[0\]: reward 'Recorder' must return a list, not NoneType"),
        (
            lambda self, prompt, group: [math.inf] * 2,
            r"rewards\[0\]: .* finite numbers, -inf or None, not inf",
        ),
        (lambda self, prompt, group: 1 / 0, r"rewards\[0\]: reward 'Recorder' failed: ZeroDivisionError"),
    ],
)
async def test_a_part_that_breaks_the_contract_is_named(
    judge: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def score(self: Recorder, prompt: Prompt, completions: Sequence[Completion]) -> Any:
        return judge(self, prompt, completions)

    monkeypatch.setattr(Recorder, "score", score)
    with pytest.raises(RewardError, match=message):
        await Product([Recorder()]).score("q", _group("a", "b"))


async def test_parts_keep_their_time_limits() -> None:
    class Slow(Recorder):
        async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
            await asyncio.Event().wait()
            raise AssertionError

    with pytest.raises(RewardTimeoutError, match=r"rewards\[0\]: reward 'Slow' took longer than 0.01 s"):
        await Product([Slow(time_limit=0.01)]).score("q", _group("a"))


async def test_problems_of_the_parts_are_told_once_each() -> None:
    def picky(completion: Completion) -> float:
        return 1 / len(completion.text)

    reward = Product([picky, Clip(picky, low=0), length])
    assert await reward.score("q", _group("", "a")) == [None, 1]
    assert len(reward.problems) == 1
    assert "'picky' gave no verdict on 1 of 2 responses: ZeroDivisionError" in reward.problems[0]
    assert await reward.score("q", _group("a")) == [1]
    assert list(reward.problems) == []


@pytest.mark.parametrize(
    "spec",
    [
        _spec("weighted_sum", rewards=["self_consistency", "math_answer:gold=2", length], weights=[1, 0.3, -0.1]),
        _spec("product", rewards=["self_consistency", number]),
        _spec("gate", condition=number, reward="self_consistency", threshold=1),
        _spec("clip", reward=number, low=-1, high=1.5),
        _spec("rescale", reward="self_consistency", scale=2, shift=-1),
    ],
    ids=lambda spec: spec["name"],
)
def test_combinations_keep_the_contract(spec: Any) -> None:
    check_reward(lambda: build(spec), texts=["1", "2", "2.0", "#### 2", "", "x"])
