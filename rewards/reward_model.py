"""Trained reward models: of whole responses, or of their steps."""

from __future__ import annotations

import importlib.util
import math
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from backends import Completion, MissingExtraError, Prompt
from rewards._model_thread import ModelThread
from rewards.errors import RewardError, RewardSpecError, failed
from rewards.pointwise import PointwiseReward
from rewards.registry import register

if TYPE_CHECKING:
    from rewards._scoring_model import Input, ScoringModel

_AGGREGATES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "prod": math.prod,
    "mean": lambda scores: math.fsum(scores) / len(scores),
    "last": lambda scores: scores[-1],
}


@register("reward_model", pure=True)
class RewardModel(PointwiseReward):
    """Reward what a trained reward model says; it is as good an oracle as its training made it.

    The model is a transformers checkpoint with a head for classification. With one output, that is the score; with
    several, as of a classifier, the probability of ``label`` is. Prompt and response are rendered by the checkpoint's
    chat template, where it has one; otherwise the response follows the prompt, as a pair where the tokenizer knows
    pairs. Nothing is ever cut off: a response that does not fit into the model has no verdict.

    - ``kind="outcome"`` scores a response as a whole (a model for sequence classification).
    - ``kind="process"`` scores each of its steps, which are told apart by ``separator``, and takes the ``aggregate`` of
      that. A model for token classification is read at the last token of the marker behind each step (Lightman et al.
      2023; Wang et al. 2024); one for sequence classification scores the response up to each step. A response without
      any text is one step.

    Scores of different models have different scales, and λ is in units of the reward. So calibration is explicit: every
    score (with ``kind="process"``, of every step) goes through ``transform``, then into the range ``clip``. A sigmoid
    makes the score of a model that was trained on preferences (Bradley and Terry 1952) the chance to be preferred to a
    response of score 0; ``{"scale": a, "shift": b}`` makes it a · score + b.

    Scores do not depend on what else is in a batch, except for rounding.
    """

    judgment_limit = None  # They are judged together, in batches.

    def __init__(
        self,
        model: str,
        *,
        kind: Literal["outcome", "process"] = "outcome",
        label: int | str | None = None,
        separator: str = "\n\n",
        marker: str | None = None,
        aggregate: Literal["min", "prod", "mean", "last"] = "min",
        transform: Literal["none", "sigmoid"] | Mapping[str, float] = "none",
        clip: tuple[float, float] | None = None,
        batch_size: int = 8,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        """Configure the reward; the model is loaded when it is first needed, in a thread of its own.

        Args:
            model: A folder, or the name of a checkpoint on the Hugging Face hub, with or without ``hf/`` before it.
            kind: Whether to score responses or their steps.
            label: Name or number of the label that means good; for models with several outputs, which need it.
            separator: What stands between steps.
            marker: What a model for token classification expects behind each step; the separator by default.
            aggregate: How scores of steps become one.
            transform: What becomes of a score: nothing, its sigmoid, or a line given by ``scale`` and ``shift``.
            clip: The smallest and the largest score; None for no limits.
            batch_size: Most sequences in one batch.
            device: ``auto`` (CUDA, then MPS, then CPU), or any torch device.
            dtype: ``auto`` (the checkpoint's own, float32 on a CPU), or a torch dtype by name.

        Raises:
            RewardSpecError: An argument is out of range.
            MissingExtraError: torch or transformers is not installed.
        """
        for name, allowed, value in (("kind", ("outcome", "process"), kind), ("aggregate", _AGGREGATES, aggregate)):
            if value not in allowed:
                raise RewardSpecError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
        if batch_size < 1:
            raise RewardSpecError(f"batch_size must be at least 1, not {batch_size}")
        if not separator or marker == "":
            raise RewardSpecError("separator and marker must be texts that are not empty")
        if clip is not None and not (all(map(math.isfinite, clip)) and clip[0] <= clip[1]):
            raise RewardSpecError(f"clip must be two finite numbers, the smaller one first, not {clip}")
        for package in ("torch", "transformers"):
            if importlib.util.find_spec(package) is None:
                raise MissingExtraError(f"a reward model needs {package}: pip install 'ets-agent[local]'")
        self._source = model.removeprefix("hf/")
        self._process = kind == "process"
        self._label = label
        self._separator = separator
        self._marker = separator if marker is None else marker
        self._aggregate = _AGGREGATES[aggregate]
        self._transform = _transform(transform)
        self._clip = clip
        self._batch_size = batch_size
        self._device, self._dtype = device, dtype
        self._thread: ModelThread[ScoringModel] = ModelThread(self._open, name="ets-reward-model")
        self.minimum, self.maximum = self._bounds(
            probability=label is not None, product=self._process and aggregate == "prod"
        )

    async def judge(self, prompt: Prompt, completion: Completion) -> float | None:
        """Return the calibrated score of one completion.

        Raises:
            RewardError: It does not fit into the model, or the model failed.
        """
        (outcome,) = await self._judge_all(prompt, [completion])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def aclose(self) -> None:
        """Free the model; another call loads it again."""
        await self._thread.aclose()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    async def _judge_all(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | Exception | None]:
        """Judge in batches, not one by one."""
        if not completions:
            return []
        given_up = threading.Event()
        texts = [completion.text for completion in completions]
        try:
            return await self._thread.run(lambda model: self._judge_texts(model, prompt, texts, given_up))
        finally:
            given_up.set()  # A thread cannot be stopped, but it looks at this.

    def _open(self) -> ScoringModel:
        try:
            from rewards._scoring_model import ScoringModel

            return ScoringModel.load(
                self._source, label=self._label, by_token=self._process, device=self._device, dtype=self._dtype
            )
        except Exception as error:  # Unknown names and damaged files raise almost anything.
            raise failed(f"loading the reward model {self._source!r}", error) from error

    def _judge_texts(
        self, model: ScoringModel, prompt: Prompt, texts: Sequence[str], given_up: threading.Event
    ) -> list[float | Exception | None]:
        """Return what each text gets, or why it gets nothing; in the model's thread."""
        failures: dict[int, Exception] = {}
        todo: list[_Part] = []
        for owner, text in enumerate(texts):
            try:
                todo += [_Part(given, owner, n) for n, given in enumerate(self._inputs(model, prompt, text))]
            except Exception as error:  # Data, not a crash: it costs one verdict.
                failures[owner] = error
        # By length, so that little is padding, and in an order of their own: the rounding of a batch must not depend
        # on the order of the group.
        todo.sort(key=lambda part: (len(part.given.token_ids), part.given.token_ids))
        scores: list[dict[int, list[float]]] = [{} for _ in texts]
        for first in range(0, len(todo), self._batch_size):
            if given_up.is_set():
                raise RewardError("nobody waits for these scores any more")
            batch = todo[first : first + self._batch_size]
            try:
                found = model.scores([part.given for part in batch])
            except Exception as error:  # Out of memory, above all.
                failures |= {part.owner: failed("the reward model", error) for part in batch}
                continue
            for part, values in zip(batch, found, strict=True):
                scores[part.owner][part.number] = values
        return [failures.get(owner) or self._verdict(parts) for owner, parts in enumerate(scores)]

    def _inputs(self, model: ScoringModel, prompt: Prompt, text: str) -> list[Input]:
        if not self._process:
            return [model.whole(prompt, text)]
        steps = [step for step in text.split(self._separator) if step.strip()] or [text]
        if model.by_token:
            return [model.stepwise(prompt, steps, self._marker)]
        return [model.whole(prompt, self._separator.join(steps[: n + 1])) for n in range(len(steps))]

    def _verdict(self, parts: Mapping[int, Sequence[float]]) -> float | Exception | None:
        scores = [score for number in sorted(parts) for score in parts[number]]
        if not all(map(math.isfinite, scores)):
            return RewardError(f"the reward model gave {scores!r:.80}, but scores are finite numbers")
        return self._aggregate([self._calibrated(score) for score in scores])

    def _calibrated(self, score: float) -> float:
        value = self._transform(score)
        return value if self._clip is None else min(max(value, self._clip[0]), self._clip[1])

    def _bounds(self, *, probability: bool, product: bool) -> tuple[float | None, float | None]:
        """Return the smallest and the largest reward that there can be, where that is known."""
        ends = (0.0, 1.0) if probability else (-math.inf, math.inf)
        low, high = sorted(self._calibrated(end) for end in ends)
        if product and not 0 <= low <= high <= 1:
            return None, None
        return (low if math.isfinite(low) else None), (high if math.isfinite(high) else None)


@dataclass(frozen=True, slots=True)
class _Part:
    """A sequence to score: of which text it is, and its place there."""

    given: Input
    owner: int
    number: int


def _transform(spec: str | Mapping[str, float]) -> Callable[[float], float]:
    """Return the function that a specification describes; it is monotone.

    Raises:
        RewardSpecError: It describes none.
    """
    if spec == "none":
        return lambda score: score
    if spec == "sigmoid":
        return _sigmoid
    if not isinstance(spec, Mapping) or not spec or not spec.keys() <= {"scale", "shift"}:
        raise RewardSpecError(f"transform is {spec!r}; allowed: none, sigmoid, or scale and shift")
    scale, shift = spec.get("scale", 1.0), spec.get("shift", 0.0)
    if not (math.isfinite(scale) and math.isfinite(shift)) or scale == 0:
        raise RewardSpecError(f"scale and shift must be finite numbers, and scale not 0, not {dict(spec)}")
    return lambda score: scale * score + shift


def _sigmoid(score: float) -> float:
    if score < 0:  # so that nothing overflows
        return math.exp(score) / (1 + math.exp(score))
    return 1 / (1 + math.exp(-score))
