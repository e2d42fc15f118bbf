from __future__ import annotations

import asyncio
import math
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import Completion, MissingExtraError
from rewards import RewardError, RewardSpecError, RewardTimeoutError, _weights, build
from rewards.similarity import Matrix, Similarity, chrf, token_f1
from rewards.testing import check_reward

Metric = Literal["token_f1", "chrf"]
METRICS: list[Metric] = ["token_f1", "chrf"]

words = st.lists(st.sampled_from(["the", "cat", "sat", "Dog", "on", "42", "!", "\n", "Straße"]), max_size=8)
texts = words.map(" ".join) | st.text(max_size=30)


def _group(*given: str, weights: Sequence[float] | None = None) -> list[Completion]:
    return [
        Completion(text=text, log_weight=math.log(weight) if weight else -math.inf)
        for text, weight in zip(given, weights or [1.0] * len(given), strict=True)
    ]


class TestMetrics:
    @pytest.mark.parametrize(
        ("one", "other", "expected"),
        [
            ("the cat sat", "the cat sat", 1),
            ("The CAT, sat!", "sat cat the", 1),
            ("STRASSE", "straße", 1),
            ("a a b", "a b b", 2 / 3),
            ("a b c d", "a", 2 / 5),
            ("a", "b", 0),
            ("हिन्दी भाषा", "हिन्दी", 2 / 3),
            ("ｆｕｌｌ １２", "full 12", 1),
            ("cafe\u0301", "café", 1),
            ("don't", "don t", 1),
            ("", "", 0),
            ("?!", "?!", 0),
            ("", "a", 0),
        ],
    )
    def test_token_f1(self, one: str, other: str, expected: float) -> None:
        assert token_f1([one, other])[0, 1] == pytest.approx(expected)

    @settings(deadline=None)
    @given(st.lists(texts, min_size=1, max_size=6))
    def test_token_f1_is_squads(self, given_texts: list[str]) -> None:
        """The definition, word for word: precision and recall of the common words."""
        from rewards.similarity import _words

        table = token_f1(given_texts)
        for i, one in enumerate(given_texts):
            for j, other in enumerate(given_texts):
                common = (Counter(_words(one)) & Counter(_words(other))).total()
                if common:
                    precision, recall = common / len(_words(one)), common / len(_words(other))
                    assert table[i, j] == pytest.approx(2 * precision * recall / (precision + recall))
                else:
                    assert table[i, j] == 0

    @settings(deadline=None)
    @given(st.lists(texts | st.text("ab ", max_size=30), min_size=2, max_size=6))
    def test_chrf_is_sacrebleus(self, given_texts: list[str]) -> None:
        sacrebleu = pytest.importorskip("sacrebleu")
        score = sacrebleu.CHRF().sentence_score
        table = chrf(given_texts)
        for i, one in enumerate(given_texts):
            for j, other in enumerate(given_texts):
                both = score(one, [other]).score + score(other, [one]).score
                assert table[i, j] == pytest.approx(both / 200, abs=1e-12)

    @pytest.mark.parametrize("text", ["a", "ab", "abcdefgh" * 9, "今天天气很好", "\ud800\udfff", "👩‍👩‍👧"])
    def test_chrf_of_equal_texts_is_one(self, text: str) -> None:
        assert chrf([text, " ".join(text)]).tolist() == [[1, 1], [1, 1]]

    @pytest.mark.parametrize("metric", [token_f1, chrf])
    def test_many_texts_are_compared_in_blocks(
        self, metric: Callable[[Sequence[str]], Matrix], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rng = random.Random(0)
        many = [" ".join(rng.choices(["so", "it", "is", "not", "so"], k=rng.randrange(30))) for _ in range(20)]
        whole = metric(many)
        monkeypatch.setattr("rewards.similarity._CELLS", 50)
        assert np.array_equal(metric(many), whole)

    @pytest.mark.parametrize("metric", [token_f1, chrf])
    @settings(deadline=None)
    @given(given_texts=st.lists(texts, min_size=1, max_size=6))
    def test_symmetric_between_0_and_1(self, metric: Callable[[Sequence[str]], Matrix], given_texts: list[str]) -> None:
        table = metric(given_texts)
        assert np.array_equal(table, table.T)
        assert ((table >= 0) & (table <= 1)).all()
        assert set(np.diag(table)) <= {0.0, 1.0}


@pytest.mark.parametrize("metric", METRICS)
def test_reward_keeps_the_contract(metric: Metric) -> None:
    check_reward(lambda: Similarity(metric), examples=30)


async def test_reward_is_the_mean_similarity_to_the_others() -> None:
    group = _group("a b", "a c", "x")
    assert await Similarity().score("q", group) == [0.25, 0.25, 0]


async def test_equal_texts_agree_when_they_were_drawn_separately() -> None:
    assert await Similarity().score("q", _group("a", "a", "b")) == [0.5, 0.5, 0]


async def test_a_completion_never_agrees_with_itself() -> None:
    assert await Similarity().score("q", _group("a")) == [0]
    assert await Similarity().score("q", _group("a", "b", "b", weights=[1e9, 1, 1])) == pytest.approx(
        [0, 0, 0], abs=1e-8
    )


async def test_weight_zero_is_no_draw_but_is_judged() -> None:
    assert await Similarity().score("q", _group("a", "a", "b", weights=[0, 1, 1])) == [0.5, 0, 0]
    assert await Similarity().score("q", _group("a", "a", weights=[0, 0])) == [0, 0]


async def test_light_others_are_told_apart_beside_a_heavy_draw() -> None:
    group = [Completion(text="z", log_weight=1e6), *_group("a", "a")]
    group.append(Completion(text="z a", log_weight=-1e6))
    assert await Similarity().score("q", group) == pytest.approx([0, 0, 0, 2 / 3])
    assert await Similarity().score("q", group[:1] + group[3:]) == pytest.approx([2 / 3, 2 / 3])


@settings(deadline=None)
@given(st.lists(st.tuples(texts, st.integers(0, 4)), min_size=1, max_size=6))
async def test_weights_mean_multiplicity(draws: list[tuple[str, int]]) -> None:
    """To all others, a completion of weight n is what n completions of weight 1 are."""
    verdicts = await Similarity().score("q", _group(*(t for t, _ in draws), weights=[n for _, n in draws]))
    for i, (text, _) in enumerate(draws):
        copies = [other for j, (other, n) in enumerate(draws) if j != i for _ in range(n)]
        (expected, *_) = await Similarity().score("q", _group(text, *copies))
        assert verdicts[i] == pytest.approx(expected)


@pytest.mark.parametrize("metric", METRICS)
@settings(deadline=None)
@given(
    st.lists(st.tuples(texts, st.floats(-30, 30)), max_size=8),
    st.floats(-1e3, 1e3),
    st.randoms(use_true_random=False),
)
async def test_order_does_not_matter_nor_does_the_scale_of_weights(
    metric: Metric, draws: list[tuple[str, float]], shift: float, rng: random.Random
) -> None:
    group = [Completion(text=text, log_weight=weight) for text, weight in draws]
    verdicts = await Similarity(metric).score("q", group)
    order = list(range(len(group)))
    rng.shuffle(order)
    assert await Similarity(metric).score("q", [group[i] for i in order]) == [verdicts[i] for i in order]
    shifted = [c.weighted(c.log_weight + shift) for c in group]
    assert await Similarity(metric).score("q", shifted) == pytest.approx(verdicts, abs=1e-9)
    assert all(verdict is not None and 0 <= verdict <= 1 for verdict in verdicts)


@given(st.floats(0, 1), st.lists(st.floats(-5, 5), min_size=1, max_size=6))
def test_the_mean_of_equal_numbers_is_that_number(value: float, log_weights: list[float]) -> None:
    assert _weights.mean([value] * len(log_weights), log_weights) == value


async def test_empty_responses_agree_with_nothing() -> None:
    assert await Similarity().score("q", _group("", "", "a", "a")) == pytest.approx([0, 0, 1 / 3, 1 / 3])


async def test_failed_draws_have_neither_weight_nor_verdict() -> None:
    failed = Completion(text="a", finish_reason="error", log_weight=math.nan)
    assert await Similarity().score("q", [failed, *_group("a", "a b"), failed]) == pytest.approx(
        [None, 2 / 3, 2 / 3, None]
    )
    assert await Similarity().score("q", [failed]) == [None]


@pytest.mark.parametrize("log_weight", [math.nan, math.inf])
async def test_weights_that_are_no_weights_are_refused(log_weight: float) -> None:
    with pytest.raises(RewardError, match="log-weight"):
        await Similarity().score("q", [Completion(text="a", log_weight=log_weight), *_group("a")])


async def test_texts_are_compared_by_their_beginnings() -> None:
    assert await Similarity(max_chars=3).score("q", _group("a b c", "a b d")) == [1, 1]


async def test_a_long_comparison_is_given_up_and_leaves_the_loop_free(monkeypatch: pytest.MonkeyPatch) -> None:
    started, told, ended = threading.Event(), threading.Event(), threading.Event()

    def measure(texts: Sequence[str], *, keep_on: Callable[[], bool]) -> Matrix:
        started.set()
        while keep_on():
            told.wait(0.001)
        ended.set()
        raise RewardError("given up")

    monkeypatch.setattr("rewards.similarity.token_f1", measure)
    # Long enough for the thread to begin: one that has not by then never does.
    with pytest.raises(RewardTimeoutError, match=r"'similarity' took longer than 1 s"):
        await Similarity(timeout=1).score("q", _group("a", "b"))
    assert await asyncio.to_thread(ended.wait, 30)
    started.clear()
    ended.clear()
    task = asyncio.create_task(Similarity().score("q", _group("a", "b")))
    assert await asyncio.to_thread(started.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(ended.wait, 30)


@pytest.mark.parametrize("metric", [token_f1, chrf])
def test_metrics_stop_when_told(metric: Callable[..., Matrix]) -> None:
    with pytest.raises(RewardError, match="given up"):
        metric(["a b", "a b c"], keep_on=lambda: False)


@pytest.mark.parametrize("metric", METRICS)
async def test_long_texts_take_little_time(metric: Metric, heap_at_rest: None) -> None:
    rng = random.Random(0)
    hostile = [
        "a" * 100_000,
        "ab" * 50_000,
        " " * 100_000,
        "".join(chr(rng.randrange(32, 0x10000)) for _ in range(20_000)),
    ]
    prose = [" ".join(rng.choices(["so", "it", "is", "what", "was", "said"], k=400)) for _ in range(45)]
    start = time.process_time()
    await Similarity(metric).score("q", _group(*hostile, *prose))
    assert time.process_time() - start < 5


class _FakeModel:
    """Embeds a text as the angle it names, in degrees."""

    loaded: list[str]
    batches: list[list[str]]

    def __init__(self, name: str) -> None:
        self.loaded.append(name)
        if name == "missing":
            raise OSError("no such model")

    def encode(self, texts: list[str], *, show_progress_bar: bool) -> Any:
        assert not show_progress_bar
        assert threading.current_thread() is not threading.main_thread()
        self.batches.append(texts)
        if "bad" in texts:
            return [[math.nan, 1.0] for _ in texts]
        angles = [math.radians(float(text or 0)) for text in texts]
        return np.array([[3 * math.cos(a), 3 * math.sin(a)] for a in angles], np.float32)


class TestEmbedding:
    @pytest.fixture(autouse=True)
    def model(self, monkeypatch: pytest.MonkeyPatch) -> type[_FakeModel]:
        """Stand in for the package that embeds."""
        package = ModuleType("sentence_transformers")
        package.SentenceTransformer = _FakeModel  # type: ignore[attr-defined]
        package.__spec__ = __spec__
        monkeypatch.setitem(sys.modules, "sentence_transformers", package)
        _FakeModel.loaded, _FakeModel.batches = [], []
        return _FakeModel

    async def test_similarity_is_the_cosine_but_not_below_zero(self) -> None:
        reward = Similarity("embedding", model="m")
        assert await reward.score("q", _group("0", "60", "180")) == pytest.approx([0.25, 0.25, 0], abs=1e-6)
        assert await reward.score("q", _group("5", "5", "")) == pytest.approx([0.5, 0.5, 0])
        await reward.aclose()

    async def test_the_model_is_loaded_once_and_each_text_embedded_once(self, model: type[_FakeModel]) -> None:
        reward = build("similarity:metric=embedding,model=m")
        assert model.loaded == []
        groups = [_group("2", "1", "2"), _group("1", "3")]
        await asyncio.gather(*(reward.session().score("q", group) for group in groups))
        assert model.loaded == ["m"]
        assert sorted(model.batches) == [["1", "2"], ["1", "3"]]
        await reward.aclose()
        await reward.aclose()
        assert await reward.score("q", _group("1", "1")) == [1, 1]
        assert model.loaded == ["m", "m"]
        await reward.aclose()

    async def test_failures_are_reward_errors(self) -> None:
        with pytest.raises(RewardError, match="loading the embedding model 'missing' failed: OSError: no such model"):
            await Similarity("embedding", model="missing").score("q", _group("1"))
        reward = Similarity("embedding", model="m")
        with pytest.raises(RewardError, match="not finite"):
            await reward.score("q", _group("1", "bad"))
        with pytest.raises(RewardError, match="the embedding model 'm' failed: ValueError"):
            await reward.score("q", _group("1", "x"))

    def test_keeps_the_contract(self) -> None:
        class Lengths(_FakeModel):
            def encode(self, texts: list[str], *, show_progress_bar: bool) -> Any:
                return np.array([[1.0, len(text)] for text in texts])

        sys.modules["sentence_transformers"].SentenceTransformer = Lengths  # type: ignore[attr-defined]
        check_reward(lambda: Similarity("embedding", model="m"), examples=20)

    def test_without_the_package_the_error_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sentence_transformers", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'ets-agent\[embeddings\]'"):
            build("similarity:metric=embedding,model=m")


async def test_a_real_embedding_model() -> None:
    pytest.importorskip("sentence_transformers")
    from backends.catalog import embedded_path

    reward = Similarity("embedding", model=str(embedded_path("tiny/qwen3-small")))
    verdicts = await reward.score("q", _group("3 + 4 = 7", "3 + 4 = 7", "an apple"))
    assert verdicts[0] == verdicts[1]
    assert verdicts[0] > verdicts[2] >= 0  # type: ignore[operator]
    await reward.aclose()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("similarity:metric=bleu", "metric='bleu'"),
        ("similarity:max_chars=0", "max_chars must be at least 1"),
        ("similarity:metric=embedding", "needs a model"),
        ("similarity:model=m", "the others take none"),
    ],
)
def test_arguments_are_checked(spec: str, message: str) -> None:
    with pytest.raises(RewardSpecError, match=message):
        build(spec)


def test_there_is_no_short_answer() -> None:
    assert Similarity().answer(Completion(text="a b")) is None
