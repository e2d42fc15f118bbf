"""Consensus on open-ended text, where there is no short answer to vote for: agreement measured as similarity."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from backends import Completion, MissingExtraError, Prompt
from rewards import _weights
from rewards._model_thread import ModelThread
from rewards.base import Reward, score_drawn
from rewards.errors import RewardError, RewardSpecError, failed
from rewards.registry import register
from rewards.timeouts import within

Matrix = NDArray[np.float64]
_Ids = NDArray[np.int64]

_CHRF_ORDER = 6
_CHRF_BETA = 2.0
_CELLS = 2**22
"""Most numbers of one block of a table, which keeps memory bounded: 16 MiB in float32."""


@register("similarity", pure=True)
class Similarity(Reward):
    """Reward how similar a response is to the others of the group on average; a group reward for open-ended text.

    It is the gain that minimum-Bayes-risk decoding maximizes (Kumar and Byrne 2004; Eikema and Aziz 2022), with draws
    of the group in place of the expectation: the mean of the metric over all other completions, each with weight
    ``exp(log_weight)``. It is no oracle: what most draws say is rewarded, right or wrong, and so is being bland.

    A completion is compared with the others and never with itself, whatever its weight is: one draw agrees with
    nothing, as in `VotingReward`, and a large importance weight must not become a reward. Equal texts that were drawn
    separately do agree. So a weight of n counts for everybody else exactly as n copies would, and only ratios of
    weights matter. A completion of weight 0 counts for nobody, but is judged. Where no other has any weight, the reward
    is 0. A failed draw neither counts nor has a verdict.

    All metrics are symmetric and between 0 and 1, where equal texts have 1. A text with nothing in it to compare (no
    word, no character but spaces) is similar to none, not even to another such: agreement on nothing is no evidence.

    - ``token_f1``: F1 of the bags of words, as SQuAD scores answers (Rajpurkar et al. 2016), case-folded, without
      punctuation in any script; articles count. It is indifferent to the order of words.
    - ``chrf``: chrF (Popović 2015), F-score with beta 2 of character n-grams of 1 to 6, without white space; averaged
      over which of the two texts is the reference. It suits languages that put no spaces between words, and code.
    - ``embedding``: cosine of sentence embeddings; below 0 it counts as 0, so that unrelated texts, near 0, have no
      similarity. It needs the extra ``embeddings`` and a ``model``; what that cuts off at its own length is not seen.
    """

    maximum = 1.0
    minimum = 0.0

    def __init__(
        self,
        metric: Literal["token_f1", "chrf", "embedding"] = "token_f1",
        *,
        model: str | None = None,
        max_chars: int = 20_000,
        timeout: float | None = 60.0,
    ) -> None:
        """Configure the comparison; a model is loaded when it is first needed.

        Args:
            metric: What similarity is.
            model: For ``embedding``: name on the Hugging Face hub, or folder, of a sentence-transformers model.
            max_chars: Texts are compared by so many of their first characters.
            timeout: Seconds that the comparison of one group may take, without loading a model; None for no limit.

        Raises:
            RewardSpecError: An argument is out of range, or ``model`` is missing or not for this metric.
            MissingExtraError: The metric needs a package that is not installed.
        """
        if metric not in ("token_f1", "chrf", "embedding"):
            raise RewardSpecError(f"metric is {metric!r}; allowed: token_f1, chrf, embedding")
        if max_chars < 1:
            raise RewardSpecError(f"max_chars must be at least 1, not {max_chars}")
        if (metric == "embedding") != (model is not None):
            raise RewardSpecError("metric 'embedding' needs a model, such as 'all-MiniLM-L6-v2'; the others take none")
        self._metric = metric
        self._max_chars = max_chars
        self.timeout = timeout
        self._embedder = None if model is None else _Embedder(model)

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        """Return the mean similarity of each completion to the others, None for failed draws.

        Raises:
            RewardError: A log-weight is NaN or plus infinity, the model fails, or the comparison takes too long.
        """
        return await score_drawn(completions, self._judge)

    async def _judge(self, drawn: list[Completion]) -> list[float]:
        _weights.check_weights(drawn)
        if self._embedder is not None:
            await self._embedder.load()
        work = self._consensus([completion.text[: self._max_chars] for completion in drawn], drawn)
        return await within(self.timeout, work, what=f"reward {self.label!r}")

    async def aclose(self) -> None:
        """Free the model, if there is one; another call loads it again."""
        if self._embedder is not None:
            await self._embedder.aclose()

    async def _consensus(self, texts: Sequence[str], completions: Sequence[Completion]) -> list[float]:
        # In an order of their own, so that neither rounding nor a model's batches depend on that of the group.
        distinct = sorted(set(texts))
        place = {text: number for number, text in enumerate(distinct)}
        places = [place[text] for text in texts]
        log_weights = [completion.log_weight for completion in completions]
        given_up = threading.Event()
        try:
            if self._embedder is not None:
                table = await self._embedder.similarities(distinct)
            else:
                measure = token_f1 if self._metric == "token_f1" else chrf
                table = await asyncio.to_thread(measure, distinct, keep_on=lambda: not given_up.is_set())
            return await asyncio.to_thread(_means_of_others, table, places, log_weights)
        finally:
            given_up.set()  # A thread cannot be stopped, but it looks at this.


def token_f1(texts: Sequence[str], *, keep_on: Callable[[], bool] = lambda: True) -> Matrix:
    """Return the F1 of the bags of words of each two texts, shape (texts, texts).

    Raises:
        RewardError: It was told not to keep on.
    """
    numbers: dict[str, int] = {}
    bags = [np.array([numbers.setdefault(word, len(numbers)) for word in _words(text)], np.int64) for text in texts]
    sizes = np.array([len(bag) for bag in bags], np.float64)
    # F1 = 2PR / (P + R), where P and R are the overlap over either size.
    return _ratio(2 * _overlaps(bags, keep_on), sizes[:, None] + sizes)


def chrf(texts: Sequence[str], *, keep_on: Callable[[], bool] = lambda: True) -> Matrix:
    """Return the chrF of each two texts, the mean of both directions, shape (texts, texts).

    As in Popović (2015), precision and recall are averaged over the orders, then combined; as in sacreBLEU, over those
    orders of which both texts have n-grams.

    Raises:
        RewardError: It was told not to keep on.
    """
    characters = [
        np.frombuffer("".join(text.split()).encode("utf-32-le", "surrogatepass"), "<u4").astype(np.int64)
        for text in texts
    ]
    grams = characters
    precision = np.zeros((len(texts), len(texts)))
    orders = np.zeros_like(precision)
    for order in range(1, _CHRF_ORDER + 1):
        if order > 1:
            grams = _extended(grams, characters, order)
        sizes = np.array([len(gram) for gram in grams], np.float64)
        precision += _ratio(_overlaps(grams, keep_on), np.broadcast_to(sizes[:, None], precision.shape))
        orders += np.minimum.outer(sizes, sizes) > 0
    precision = _ratio(precision, orders)
    recall = precision.T
    factor = _CHRF_BETA**2
    score = _ratio((1 + factor) * precision * recall, factor * precision + recall)
    return (score + score.T) / 2


class _Separators(dict[int, str]):
    """For `str.translate`: whatever is no letter, mark or number becomes a space. Filled as characters come up."""

    def __missing__(self, character: int) -> str:
        kept = unicodedata.category(chr(character))[0] in "LMN"
        return self.setdefault(character, chr(character) if kept else " ")


_SEPARATORS = _Separators()


def _words(text: str) -> list[str]:
    return unicodedata.normalize("NFKC", text.casefold()).translate(_SEPARATORS).split()


def _extended(grams: Sequence[_Ids], characters: Sequence[_Ids], order: int) -> list[_Ids]:
    """Return numbers for the n-grams of the next order, from those of this one and the character that follows."""
    pairs = [gram[:-1] << 21 | text[order - 1 :] for gram, text in zip(grams, characters, strict=True)]
    _, numbers = np.unique(np.concatenate(pairs), return_inverse=True)
    return np.split(numbers.astype(np.int64), np.cumsum([len(pair) for pair in pairs])[:-1])


def _overlaps(bags: Sequence[_Ids], keep_on: Callable[[], bool]) -> Matrix:
    """Return how many items each two bags have in common, counted with multiplicity, shape (bags, bags)."""
    items = np.concatenate(bags)
    owners = np.repeat(np.arange(len(bags)), [len(bag) for bag in bags])
    # The k-th occurrence of an item in a bag matches the k-th in another, so bags become sets of (item, k).
    order = np.lexsort((owners, items))
    items, owners = items[order], owners[order]
    starts = np.flatnonzero(np.diff(items, prepend=-1) | np.diff(owners, prepend=-1))
    times = np.arange(len(items)) - np.repeat(starts, np.diff(starts, append=len(items)))
    order = np.lexsort((times, items))
    items, owners, times = items[order], owners[order], times[order]
    elements = np.cumsum((np.diff(items, prepend=-1) | np.diff(times, prepend=0)) != 0) - 1
    counts = np.bincount(elements)
    overlaps = np.diag([float(len(bag)) for bag in bags])
    # Only what several bags have can be in common; in blocks, whose sums of ones are exact in float32.
    several = counts[elements] > 1
    owners, elements = owners[several], np.unique(elements[several], return_inverse=True)[1]
    number = int(elements[-1]) + 1 if len(elements) else 0
    width = max(1, min(number, _CELLS // len(bags)))
    for first in range(0, number, width):
        if not keep_on():
            raise RewardError("the comparison of texts was given up")
        low, high = np.searchsorted(elements, [first, first + width])
        members = np.zeros((len(bags), width), np.float32)
        members[owners[low:high], elements[low:high] - first] = 1
        shared = (members @ members.T).astype(np.float64)
        np.fill_diagonal(shared, 0)
        overlaps += shared
    return overlaps


def _ratio(above: Matrix, below: Matrix) -> Matrix:
    """Divide; what is divided by 0 becomes 0."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _means_of_others(table: Matrix, places: Sequence[int], log_weights: Sequence[float]) -> list[float]:
    """Return for each completion the weighted mean of its similarities to the others, 0 if they have no weight.

    Args:
        table: Similarities of each two texts.
        places: Where in the table the text of each completion is.
        log_weights: Logs of the completions' weights.
    """
    means = [
        _weights.mean(np.delete(table[place, places], own).tolist(), [*log_weights[:own], *log_weights[own + 1 :]])
        for own, place in enumerate(places)
    ]
    return [mean or 0.0 for mean in means]


class _Embedder:
    """Compares by a sentence-transformers model, in a thread of its own."""

    def __init__(self, name: str) -> None:
        if importlib.util.find_spec("sentence_transformers") is None:
            raise MissingExtraError(
                "similarity by embedding needs sentence-transformers: pip install 'ets-agent[embeddings]'"
            )
        self._name = name
        self._thread: ModelThread[Any] = ModelThread(self._open, name="ets-embeddings")

    async def load(self) -> None:
        """Load the model, unless it is there."""
        await self._thread.run(lambda model: None)

    async def similarities(self, texts: Sequence[str]) -> Matrix:
        """Return the cosines of each two texts, negative ones as 0."""
        return await self._thread.run(lambda model: self._compare(model, texts))

    async def aclose(self) -> None:
        """Free the model."""
        await self._thread.aclose()

    def _open(self) -> Any:
        try:
            from sentence_transformers import SentenceTransformer

            return SentenceTransformer(self._name)
        except Exception as error:  # Unknown names and damaged files raise almost anything.
            raise failed(f"loading the embedding model {self._name!r}", error) from error

    def _compare(self, model: Any, texts: Sequence[str]) -> Matrix:
        try:
            vectors = np.asarray(model.encode(list(texts), show_progress_bar=False), np.float64)
        except Exception as error:
            raise failed(f"the embedding model {self._name!r}", error) from error
        if not np.isfinite(vectors).all():
            raise RewardError(f"the embedding model {self._name!r} gave numbers that are not finite")
        lengths = np.linalg.norm(vectors, axis=1)
        cosines = np.clip(_ratio(vectors @ vectors.T, np.multiply.outer(lengths, lengths)), 0, 1)
        np.fill_diagonal(cosines, 1.0)  # which rounding may miss
        blank = [not text.strip() for text in texts]
        cosines[blank], cosines[:, blank] = 0, 0
        return cosines
