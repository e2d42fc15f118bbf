from __future__ import annotations

import asyncio
import math
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from backends import Completion, MissingExtraError, Prompt
from backends.catalog import embedded_path
from rewards import RewardError, RewardSpecError, build
from rewards._model_thread import ModelThread
from rewards.reward_model import RewardModel
from rewards.testing import check_reward

Make = Callable[..., str]

TEXTS = ["7", "3 + 4 = 7\n#### 7", "I do not know, but it may well be eight or nine.", "", "7 apples\n\nSo it is 7."]


def _group(*texts: str) -> list[Completion]:
    return [Completion(text=text) for text in texts]


async def _scores(prompt: Prompt, texts: Sequence[str], model: str, **options: Any) -> list[Any]:
    reward = RewardModel(model, **options)
    try:
        return await reward.score(prompt, _group(*texts))
    finally:
        await reward.aclose()


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Make random checkpoints with the embedded models' tokenizer; the same arguments give the same one."""
    made: dict[Any, str] = {}

    def checkpoint(
        kind: str = "Qwen3ForSequenceClassification", *, template: bool = True, positions: int = 256, **options: Any
    ) -> str:
        import torch
        import transformers

        key = (kind, template, positions, *sorted(options.items()))
        if key in made:
            return made[key]
        folder = tmp_path_factory.mktemp("model")
        tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_path("tiny/qwen3-small"))
        if not template:
            tokenizer.chat_template = None
        settings: dict[str, Any] = {"pad_token_id": None, "num_labels": 1, "eos_token_id": None, **options}
        model_class = getattr(transformers, kind)
        config = model_class.config_class(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=positions,
            **({} if kind.startswith("Bert") else {"num_key_value_heads": 2, "head_dim": 16}),
            **settings,
        )
        torch.manual_seed(0)
        model = model_class(config)
        for weights in model.parameters():
            if weights.ndim == 2:
                torch.nn.init.normal_(weights, std=0.3)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        made[key] = str(folder)
        return made[key]

    return checkpoint


def _reference(folder: str, text: str) -> list[list[float]]:
    """Return the logits that plain transformers gives for one text, of shape (tokens or 1, labels)."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

    tokens = "TokenClassification" in (Path(folder) / "config.json").read_text()
    auto: Any = AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification
    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = auto.from_pretrained(folder).eval()(input_ids=torch.tensor([ids])).logits
    return logits.reshape(-1, logits.shape[-1]).tolist()  # type: ignore[no-any-return]


CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}"


class TestOutcome:
    async def test_the_score_of_a_scalar_model_is_its_output(self, make: Make) -> None:
        expected = [_reference(make(), CHAT.format("3 + 4?", text) + "<|im_end|>\n")[0][0] for text in TEXTS]
        assert len({round(score, 3) for score in expected}) == len(TEXTS)
        assert await _scores("3 + 4?", TEXTS, make()) == pytest.approx(expected, abs=1e-5)
        assert await _scores([{"role": "user", "content": "3 + 4?"}], TEXTS, "hf/" + make()) == pytest.approx(
            expected, abs=1e-5
        )

    async def test_without_a_chat_template_the_response_follows_the_prompt(self, make: Make) -> None:
        folder = make(template=False)
        expected = [_reference(folder, "What is it? " + text)[0][0] for text in ("#### 7", "no")]
        assert await _scores("What is it? ", ["#### 7", "no"], folder) == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("label", [1, "good"])
    async def test_with_labels_the_score_is_a_probability(self, make: Make, label: int | str) -> None:
        names = {"id2label": {0: "bad", 1: "good", 2: "odd"}, "label2id": {"bad": 0, "good": 1, "odd": 2}}
        folder = _labeled(make, names)
        logits = _reference(folder, CHAT.format("q", "7") + "<|im_end|>\n")[0]
        expected = math.exp(logits[1]) / sum(map(math.exp, logits))
        assert await _scores("q", ["7"], folder, label=label) == pytest.approx([expected], abs=1e-5)

    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("Qwen3ForSequenceClassification", {}),
            ("Qwen3ForSequenceClassification", {"pad_token_id": 0}),
            ("Qwen3ForSequenceClassification", {"pad_token_id": 2}),
            ("LlamaForSequenceClassification", {"pad_token_id": None}),
            ("BertForSequenceClassification", {"pad_token_id": 0}),
        ],
        ids=str,
    )
    async def test_scores_do_not_depend_on_the_batch(self, make: Make, kind: str, options: dict[str, Any]) -> None:
        folder = make(kind, **options)
        texts = [*TEXTS, "long " * 40]
        single = [(await _scores("q", [text], folder, batch_size=1))[0] for text in texts]
        assert await _scores("q", texts, folder, batch_size=6) == pytest.approx(single, abs=1e-5)
        assert await _scores("q", texts, folder, batch_size=4) == pytest.approx(single, abs=1e-5)

    async def test_the_last_token_counts_though_it_is_the_tokenizers_padding(self, make: Make) -> None:
        """A checkpoint without padding in its config was trained on the last token, whatever that is."""
        folder = make(template=False)
        expected = _reference(folder, "What? 7<|endoftext|>")[0][0]
        verdicts = await _scores("What? ", ["7<|endoftext|>", "7", "a longer response"], folder)
        assert verdicts[0] == pytest.approx(expected, abs=1e-5)
        assert verdicts[0] != pytest.approx(verdicts[1], abs=1e-3)

    async def test_batches_hold_responses_of_similar_length(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        from rewards._scoring_model import ScoringModel

        seen: list[list[int]] = []
        scores = ScoringModel.scores

        def noting(self: Any, inputs: Any) -> Any:
            seen.append([len(given.token_ids) for given in inputs])
            return scores(self, inputs)

        monkeypatch.setattr(ScoringModel, "scores", noting)
        await _scores("q", ["x " * 50, "a", "x " * 49, "b"], make(), batch_size=2)
        assert [len(batch) for batch in seen] == [2, 2]
        lengths = [length for batch in seen for length in batch]
        assert lengths == sorted(lengths)


def _labeled(make: Make, names: dict[str, Any]) -> str:
    """Return a checkpoint with named labels."""
    import json

    folder = Path(make(num_labels=3))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **names}))
    return str(folder)


PROCESS = "Qwen3ForTokenClassification"


class TestProcess:
    async def test_steps_are_scored_at_their_markers(self, make: Make) -> None:
        from transformers import AutoTokenizer

        folder = make(PROCESS, num_labels=2)
        text = CHAT.format("q", "3 + 4<|im_end|>is 7<|im_end|>")
        ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
        (end,) = AutoTokenizer.from_pretrained(folder)("<|im_end|>")["input_ids"]
        logits = [row for token, row in zip(ids, _reference(folder, text), strict=True) if token == end][1:]
        one, two = (math.exp(row[1]) / sum(map(math.exp, row)) for row in logits)
        expected = {"min": min(one, two), "prod": one * two, "mean": (one + two) / 2, "last": two}
        for aggregate, score in expected.items():
            options = {"kind": "process", "label": 1, "marker": "<|im_end|>", "aggregate": aggregate}
            assert await _scores("q", ["3 + 4\n\n \n\nis 7"], folder, **options) == pytest.approx([score], abs=1e-5)

    @pytest.mark.parametrize("marker", ["\n\n", " ки", "\n", "##"])
    @pytest.mark.parametrize("template", [True, False])
    async def test_the_places_read_are_the_ends_of_markers(self, make: Make, marker: str, template: bool) -> None:
        from rewards._scoring_model import ScoringModel

        folder = make(PROCESS, template=template)
        model = ScoringModel.load(folder, label=None, by_token=True, device="cpu", dtype="auto")
        steps = ["3 + 4 = 7.", "é 7", "#", "x"]
        given = model.stepwise("A question?", steps, marker)
        assert len(given.places) == 4
        tokenizer = model._tokenizer
        for number, place in enumerate(given.places):
            read = tokenizer.decode(given.token_ids[: place + 1])
            before = tokenizer.decode(given.token_ids[:place])
            whole = "".join(step + marker for step in steps[: number + 1])
            assert read.rstrip("#\n").endswith(whole.rstrip("#\n"))
            assert len(read) >= read.index(steps[0]) + len(whole) > len(before.rstrip("\N{REPLACEMENT CHARACTER}"))

    async def test_a_model_of_whole_responses_scores_the_response_up_to_each_step(self, make: Make) -> None:
        first, second = await _scores("q", ["a", "a\n\nb"], make())
        options = {"kind": "process", "transform": {"scale": 2}}
        assert await _scores("q", ["a\n\nb"], make(), **options, aggregate="min") == pytest.approx(
            [2 * min(first, second)], abs=1e-5
        )
        assert await _scores("q", ["a\n\nb"], make(), **options, aggregate="last") == pytest.approx(
            [2 * second], abs=1e-5
        )
        assert await _scores("q", ["b\n\na"], make(), **options, aggregate="last") == pytest.approx(
            [2 * (await _scores("q", ["b\n\na"], make()))[0]], abs=1e-5
        )
        assert await _scores("q", ["a\n\nb"], make(), **options, aggregate="mean") == pytest.approx(
            [first + second], abs=1e-5
        )

    async def test_a_response_without_text_is_one_step(self, make: Make) -> None:
        for folder in (make(), make(PROCESS)):
            (verdict,) = await _scores("q", [""], folder, kind="process")
            assert verdict is not None

    async def test_other_separators(self, make: Make) -> None:
        options: dict[str, Any] = {"kind": "process", "aggregate": "mean"}
        by_lines = await _scores("q", ["a\n\nb"], make(PROCESS), **options, separator="\n", marker="\n\n")
        assert by_lines == pytest.approx(await _scores("q", ["a\n\nb"], make(PROCESS), **options))

    async def test_scores_do_not_depend_on_the_batch(self, make: Make) -> None:
        folder = make(PROCESS)
        single = [(await _scores("q", [text], folder, kind="process"))[0] for text in TEXTS]
        assert await _scores("q", TEXTS, folder, kind="process") == pytest.approx(single, abs=1e-5)


class TestCalibration:
    async def test_transforms(self, make: Make) -> None:
        raw = await _scores("q", TEXTS, make())
        sigmoid = [1 / (1 + math.exp(-score)) for score in raw]
        assert await _scores("q", TEXTS, make(), transform="sigmoid") == pytest.approx(sigmoid)
        line = {"scale": -0.5, "shift": 3}
        assert await _scores("q", TEXTS, make(), transform=line) == pytest.approx([3 - score / 2 for score in raw])
        clipped = [min(max(score, -0.1), 0.2) for score in raw]
        assert await _scores("q", TEXTS, make(), clip=(-0.1, 0.2)) == pytest.approx(clipped)

    @pytest.mark.parametrize(
        ("options", "bounds"),
        [
            ({}, (None, None)),
            ({"label": 1}, (0, 1)),
            ({"transform": "sigmoid"}, (0, 1)),
            ({"transform": {"shift": 1}}, (None, None)),
            ({"transform": {"scale": -2, "shift": 1}, "label": "good"}, (-1, 1)),
            ({"clip": (-1, 2)}, (-1, 2)),
            ({"clip": (0.25, 2), "transform": "sigmoid"}, (0.25, 1)),
            ({"kind": "process", "aggregate": "prod", "label": 1}, (0, 1)),
            ({"kind": "process", "aggregate": "prod", "clip": (-1, 2)}, (None, None)),
            ({"kind": "process", "aggregate": "min", "clip": (-1, 2)}, (-1, 2)),
        ],
        ids=str,
    )
    def test_bounds_are_known_where_they_follow(self, options: dict[str, Any], bounds: Any) -> None:
        reward = RewardModel("m", **options)
        assert (reward.minimum, reward.maximum) == bounds

    def test_extreme_scores_do_not_overflow(self) -> None:
        reward = RewardModel("m", transform="sigmoid")
        assert [reward._calibrated(score) for score in (-1e4, 0, 1e4)] == [0, 0.5, 1]


class TestFailures:
    async def test_what_does_not_fit_has_no_verdict_and_is_not_cut(self, make: Make) -> None:
        reward = RewardModel(make(positions=32))
        texts = ["7", "seven " * 40]
        verdicts = await reward.score("q", _group(*texts))
        assert verdicts[0] is not None
        assert verdicts[1] is None
        assert "RewardError: prompt and response have" in reward.problems[0]
        assert "the reward model reads 32" in reward.problems[0]
        with pytest.raises(RewardError, match="the reward model reads 32"):
            await reward.score("q", _group(texts[1]))
        await reward.aclose()

    async def test_scores_that_are_no_numbers_are_no_verdicts(self, make: Make, monkeypatch: Any) -> None:
        from rewards._scoring_model import ScoringModel

        def scores(self: Any, inputs: Any) -> list[list[float]]:
            return [[1.0, math.nan] if len(given.token_ids) > 20 else [1.0, 2.0] for given in inputs]

        monkeypatch.setattr(ScoringModel, "scores", scores)
        assert await _scores("q", ["7", "seven " * 20], make()) == [1, None]

    async def test_a_batch_that_fails_costs_its_verdicts_alone(self, make: Make, monkeypatch: Any) -> None:
        from rewards._scoring_model import ScoringModel

        def scores(self: Any, inputs: Any) -> list[list[float]]:
            if len(inputs[0].token_ids) > 20:
                raise MemoryError("out of memory")
            return [[1.0] for _ in inputs]

        monkeypatch.setattr(ScoringModel, "scores", scores)
        reward = RewardModel(make(), batch_size=1)
        assert await reward.score("q", _group("7", "seven " * 20)) == [1, None]
        assert "the reward model failed: MemoryError: out of memory" in reward.problems[0]
        await reward.aclose()

    @pytest.mark.parametrize(
        ("kind", "num_labels", "options", "message"),
        [
            ("Qwen3ForCausalLM", 1, {}, "not trained as a reward model: the checkpoint lacks score.weight"),
            (PROCESS, 1, {}, "it scores tokens, so it needs kind='process'"),
            ("Qwen3ForSequenceClassification", 3, {}, r"which label means good is not said; there are: 0 \("),
            ("Qwen3ForSequenceClassification", 3, {"label": 3}, "it has no label 3"),
            ("Qwen3ForSequenceClassification", 3, {"label": "best"}, "it has no label 'best'"),
            ("Qwen3ForSequenceClassification", 1, {"label": 0}, "it has one output"),
            ("Qwen3ForSequenceClassification", 1, {"device": "toaster"}, "device is 'toaster'"),
        ],
    )
    async def test_models_that_are_none(
        self, make: Make, kind: str, num_labels: int, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(RewardError, match=rf"loading the reward model .* failed: .*{message}"):
            await _scores("q", ["a"], make(kind, num_labels=num_labels), **options)

    async def test_no_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(RewardError, match="loading the reward model"):
            await _scores("q", ["a"], str(tmp_path))

    def test_without_the_package_the_error_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(MissingExtraError, match=r"needs torch: pip install 'ets-agent\[local\]'"):
            build("reward_model:model=m")

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("kind=other", "kind='other'"),
            ("aggregate=max", "aggregate='max'"),
            ("batch_size=0", "batch_size must be at least 1"),
            ("clip=[1, 0]", "clip must be two finite numbers"),
            ("clip=[1]", "clip="),
            ('separator=""', "separator and marker"),
            ("transform=tanh", "transform='tanh'"),
            ('transform={"factor": 2}', "allowed: none, sigmoid, or scale and shift"),
            ('transform={"scale": 0}', "scale not 0"),
            ('transform={"scale": "2"}', "transform="),
        ],
    )
    def test_arguments_are_checked(self, spec: str, message: str) -> None:
        with pytest.raises(RewardSpecError, match=message):
            build(f"reward_model:model=m,{spec}")


class TestThread:
    async def test_a_model_is_loaded_once_and_used_off_the_loop(self, make: Make, monkeypatch: Any) -> None:
        from rewards._scoring_model import ScoringModel

        threads: set[int] = set()
        loads: list[str] = []
        load, scores = ScoringModel.load, ScoringModel.scores

        def loading(source: str, **options: Any) -> Any:
            loads.append(source)
            return load(source, **options)

        def scoring(self: Any, inputs: Any) -> Any:
            threads.add(threading.get_ident())
            return scores(self, inputs)

        monkeypatch.setattr(ScoringModel, "load", loading)
        monkeypatch.setattr(ScoringModel, "scores", scoring)
        reward = build({"name": "reward_model", "model": make(), "transform": {"scale": 2.0}, "clip": [-9, 9]})
        assert loads == []
        runs = [reward.session() for _ in range(4)]
        verdicts = await asyncio.gather(*(run.score("q", _group("7", "8", "7")) for run in runs))
        assert len(threads) == len(loads) == 1
        assert threads != {threading.get_ident()}
        assert verdicts == [verdicts[0]] * 4
        await reward.aclose()
        await reward.aclose()
        assert (await reward.score("q", _group("7")))[0] == pytest.approx(verdicts[0][0], abs=1e-5)
        assert len(loads) == 2
        await reward.aclose()

    async def test_cancelling_leaves_the_other_batches_undone(self, make: Make, monkeypatch: Any) -> None:
        from rewards._scoring_model import ScoringModel

        started, go_on, batches = threading.Event(), threading.Event(), []

        def scores(self: Any, inputs: Any) -> list[list[float]]:
            batches.append(inputs)
            started.set()
            assert go_on.wait(30)
            return [[1.0] for _ in inputs]

        monkeypatch.setattr(ScoringModel, "scores", scores)
        reward = RewardModel(make(), batch_size=1)
        task = asyncio.create_task(reward.score("q", _group("7", "8", "9")))
        assert await asyncio.to_thread(started.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        assert await reward.score("q", _group("7")) == [1]
        assert len(batches) == 2
        await reward.aclose()

    async def test_closing_waits_for_work_and_frees_the_model(self) -> None:
        import gc
        import weakref

        class Model:
            pass

        thread: ModelThread[Model] = ModelThread(Model, name="test")
        alive = await thread.run(weakref.ref)
        assert alive() is not None
        started, go_on = threading.Event(), threading.Event()
        work = asyncio.create_task(thread.run(lambda model: started.set() or go_on.wait(30)))
        assert await asyncio.to_thread(started.wait, 30)
        closing = asyncio.create_task(thread.aclose())
        await asyncio.sleep(0)
        assert not closing.done()
        go_on.set()
        await closing
        assert await work
        gc.collect()
        assert alive() is None
        assert "test" not in {thread.name[:4] for thread in threading.enumerate()}


@pytest.mark.parametrize("process", [False, True], ids=["outcome", "process"])
def test_reward_models_keep_the_contract(make: Make, process: bool) -> None:
    folder = make(PROCESS if process else "Qwen3ForSequenceClassification")
    shared = RewardModel(folder, kind="process" if process else "outcome", batch_size=3)

    class Shared(RewardModel):
        """Another reward with the same model, which would take long to load each time."""

        def __init__(self) -> None:
            self.__dict__ |= shared.__dict__

        async def aclose(self) -> None:
            pass

    check_reward(Shared, examples=15)
    asyncio.run(shared.aclose())
