"""The model's own confidence as reward: no key, no votes, no judge.

The ETS paper compares these with self-consistency and finds them worse; they are here because they need no answer that
could be extracted. All are means over the tokens of a response under the model's own distribution, at temperature 1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable

from backends import Completion, Confidence, Prompt
from rewards.errors import RewardError
from rewards.pointwise import PointwiseReward
from rewards.registry import register


class _ConfidenceReward(PointwiseReward):
    needs = frozenset({"confidence"})

    async def judge(self, prompt: Prompt, completion: Completion) -> float | None:
        """Return the mean over the response's tokens (nats); None for a response without tokens.

        Raises:
            RewardError: The completion does not tell.
        """
        confidence = completion.confidence
        total = None if confidence is None else self._total(confidence)
        if confidence is None or total is None:
            raise RewardError(
                f"reward {self.label!r} needs completions that tell their confidence, as a backend draws them "
                "with SamplingParams(confidence=True)"
            )
        return total / confidence.num_tokens if confidence.num_tokens else None

    def identity(self, completion: Completion) -> Hashable:
        """Return the confidence: one text may have been drawn as different tokens."""
        return completion.confidence

    @abstractmethod
    def _total(self, confidence: Confidence) -> float | None: ...


@register("logprob")
class LogProb(_ConfidenceReward):
    """Mean log-probability of the response's tokens (nats), at most 0; no oracle.

    (1/n) Σ_i log p(x_i | y, x_<i), minus the logarithm of the response's perplexity. The mean, not the sum, so that
    length alone does not decide.
    """

    maximum = 0.0

    def _total(self, confidence: Confidence) -> float | None:
        return confidence.logprob


@register("entropy")
class Entropy(_ConfidenceReward):
    """Minus the mean entropy of the next-token distributions along the response (nats), at most 0; no oracle.

    (1/n) Σ_i Σ_v p(v | y, x_<i) log p(v | y, x_<i): higher where the model hesitates less.
    """

    maximum = 0.0
    needs = frozenset({"confidence", "entropy"})

    def _total(self, confidence: Confidence) -> float | None:
        return None if confidence.entropy is None else -confidence.entropy


@register("self_certainty")
class SelfCertainty(_ConfidenceReward):
    """Mean divergence of the next-token distributions from uniform, KL(U || p) (nats), at least 0; no oracle.

    -(1/(nV)) Σ_i Σ_v log(V p(v | y, x_<i)), for a vocabulary of V tokens: Kang, Zhao and Song, "Scalable Best-of-N
    Selection for Large Language Models via Self-Certainty" (arXiv 2502.18581), section 3.
    """

    minimum = 0.0
    needs = frozenset({"confidence", "entropy"})

    def _total(self, confidence: Confidence) -> float | None:
        return confidence.self_certainty
