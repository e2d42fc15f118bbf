"""The contract between the algorithms and any language model: states, completions and the `Backend` protocol.

Generation is a chain of states from the bare prompt to a finished response. A backend advances states (`extend`),
completes them (`rollout`) and says how probable given completions are (`score`). Everything else about the model, its
caches above all, is the backend's own business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Literal, Protocol, Self, runtime_checkable

import numpy as np

from backends.errors import PromptError
from backends.tokenization import Tokenization

Message = Mapping[str, str]
"""One chat message: ``{"role": "user", "content": "…"}``."""

Prompt = str | Sequence[Message]
"""Plain text, continued as it stands, or chat messages, rendered with the model's chat template."""

FinishReason = Literal["stop", "length", "error"]
"""Why a sequence ended: ``stop`` (end-of-sequence token or stop string), ``length`` (the token budget is used up)
or ``error`` (the draw failed; it is no sample)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """The sampling parameters of a run. They define p_ref, so they hold for candidates, rollouts and scores alike.

    Attributes:
        temperature: Logits are divided by it; 0 means greedy decoding.
        top_p: Nucleus sampling keeps the smallest set of tokens whose probability reaches it; 1 keeps all.
        top_k: Only this many most probable tokens are kept; 0 keeps all.
        stop: Strings that end a sequence wherever they occur; they are not part of its text.
        confidence: Whether states and completions are to tell their `Confidence`; it changes nothing that is drawn.
        logprobs: Whether completions are to tell their log-probability; a server that need not sends a fraction of
            the bytes. It changes nothing that is drawn.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    confidence: bool = False
    logprobs: bool = True

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise PromptError(f"temperature must be a finite number of at least 0, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise PromptError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise PromptError(f"top_k must be at least 0 (0 keeps all tokens), not {self.top_k}")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise PromptError("stop strings must be non-empty text")

    @property
    def truncated(self) -> bool:
        """Whether some tokens can never be drawn (top-p, top-k or greedy decoding)."""
        return self.top_p < 1 or self.top_k > 0 or self.greedy

    @property
    def plain(self) -> bool:
        """Whether the sampled distribution is the model's own: temperature 1, and no truncation."""
        return self.temperature == 1 and not self.truncated

    @property
    def greedy(self) -> bool:
        """Whether only the most probable token is ever drawn.

        So it is below the smallest normal float32 already: logits cannot be divided by less.
        """
        return self.temperature < float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True, kw_only=True)
class Confidence:
    """How sure a model was of its tokens: sums over all tokens of a response (nats).

    All are of the model's own distribution p, at temperature 1 and without truncation, whatever was sampled from, so
    that they describe the response and not the sampling parameters.

    Attributes:
        num_tokens: Tokens, the end-of-sequence token included where one was drawn.
        logprob: Sum of log p(token).
        entropy: Sum of the entropies of p; None where only the tokens' own probabilities are known.
        self_certainty: Sum of KL(U || p) with U uniform over the V tokens of the vocabulary: -log V minus the mean of
            log p; None where it is not known.
    """

    num_tokens: int = 0
    logprob: float = 0.0
    entropy: float | None = 0.0
    self_certainty: float | None = 0.0

    def __add__(self, other: Confidence) -> Confidence:
        """Return the confidence of two parts of a response together."""
        return Confidence(
            num_tokens=self.num_tokens + other.num_tokens,
            logprob=self.logprob + other.logprob,
            entropy=_sum(self.entropy, other.entropy),
            self_certainty=_sum(self.self_certainty, other.self_certainty),
        )


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend can do.

    Attributes:
        continue_prefix: Generation can go on from a partial response, so several steps are possible.
        logprobs: Completions carry their log-probability under the sampled distribution.
        score: Given token sequences can be scored under the sampled distribution.
        tempered_logprobs: Log-probabilities of completions are known for all sampling parameters, and not only for
            plain ones (temperature 1, no truncation).
        tempered_score: The same of given token sequences.
        full_support: Nothing beyond the given parameters truncates what is drawn, such as a top-k of the server's own.
        seed: Draws are determined by the seed.
        chat: Prompts may be chat messages.
        confidence: States and completions tell their `Confidence` where the parameters ask for it.
        entropy: It includes entropy and self-certainty.
    """

    continue_prefix: bool = True
    logprobs: bool = True
    score: bool = True
    tempered_logprobs: bool = True
    tempered_score: bool = True
    full_support: bool = True
    seed: bool = True
    chat: bool = True
    confidence: bool = False
    entropy: bool = False


@dataclass(frozen=True, kw_only=True)
class State:
    """A partial response x_t: an immutable value, compared by content.

    Backends derive their own states from it and hide in them what they need; algorithms use these attributes only.

    Attributes:
        text: The response so far, without the prompt.
        num_tokens: Tokens of the response so far.
        token_ids: Those tokens, for `Backend.adopt`; of a masked-diffusion model the canvas, -1 where it is masked.
            Empty where the backend does not know them.
        finished: Whether the response is complete, i.e. this is x_0.
        finish_reason: Why it is, once it is.
        confidence: How sure the model was of the response so far, where that was asked for.
    """

    text: str = ""
    num_tokens: int = 0
    token_ids: tuple[int, ...] = field(default=(), repr=False)
    finish_reason: FinishReason | None = None
    confidence: Confidence | None = field(default=None, repr=False, compare=False)

    @property
    def finished(self) -> bool:
        """Whether the response is complete."""
        return self.finish_reason is not None

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt; None where the backend does not know."""
        return None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A complete response, drawn by `Backend.rollout` from a state or written by hand: ``Completion(text="…")``.

    Attributes:
        text: The whole response: the state's text and the rollout's.
        token_ids: Tokens of the rollout alone, with the end-of-sequence token where one was drawn.
        positions: Where in the response each of them was put, in the order of drawing, by a masked-diffusion model;
            empty for an autoregressive one.
        logprob: Log-probability (nats) of ``token_ids`` given the state under the sampled distribution, where known.
            A masked-diffusion model's is given the positions too; those are drawn alike by all models of one schedule.
        finish_reason: Why it ended; ``error`` marks a failed draw. Of given tokens, ``stop`` says that the last one
            is an end-of-sequence token, unless there are stop strings; give ``length`` to those that end in none.
        log_weight: Log of the number of draws that this completion stands for in its group (nats). Group
            rewards use it as vote weight.
        error: What went wrong, where ``finish_reason`` is ``error``.
        final: Whether that is what the model's server says of this very draw, such as a content filter, so that it is
            not to be drawn again: another draw in its place would make what is filtered rarer than it is.
        confidence: How sure the model was of the whole response, where that was asked for.
        token_count: Number of the rollout's tokens where the backend knows that but not the tokens.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    logprob: float | None = None
    finish_reason: FinishReason = "stop"
    log_weight: float = 0.0
    error: str | None = None
    final: bool = False
    confidence: Confidence | None = field(default=None, repr=False)
    token_count: int | None = field(default=None, repr=False)

    @property
    def num_tokens(self) -> int:
        """Tokens of the rollout alone."""
        return len(self.token_ids) if self.token_count is None else self.token_count

    def weighted(self, log_weight: float) -> Completion:
        """Return the same completion standing for ``exp(log_weight)`` draws."""
        return replace(self, log_weight=log_weight)


@runtime_checkable
class Backend(Protocol):
    """A language model that can be advanced step by step.

    All methods may be called concurrently from one event loop; cancelling a call stops its work. Seeds are
    non-negative integers: row i of a call draws from a stream that is a pure function of (seed, i), see `row_seeds`,
    so a row does not depend on how many others are drawn with it or on what else the backend is doing.
    """

    @property
    def name(self) -> str:
        """The model's name, for results and messages."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What this backend can do."""
        ...

    @property
    def tokenization(self) -> Tokenization | None:
        """What tokens mean to this model, None where that is not known; equal ones can share token ids."""
        ...

    async def begin(self, prompt: Prompt, *, max_tokens: int, params: SamplingParams) -> State:
        """Return the empty response to a prompt.

        Args:
            prompt: Text or chat messages.
            max_tokens: Budget of the whole response, in tokens; no later call exceeds it.
            params: Sampling parameters of everything drawn from this state.

        Raises:
            PromptError: The prompt is empty or of the wrong type.
            ContextLengthError: Prompt and budget do not fit into the context window.
        """
        ...

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        """Draw n successors of one state from p_ref(x_s | x_t), each ``tokens`` further (less where it ends earlier).

        A finished state is returned n times as it is.
        """
        ...

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        """Complete each state n times from p_ref(x_0 | x_s); row (i, k) uses ``row_seeds(seed, n, i)[k]``.

        A finished state gives n copies of itself with an empty rollout of log-probability 0.
        """
        ...

    def adopt(self, state: State, others: Sequence[State]) -> list[State]:
        """Return this backend's states for partial responses that another backend has drawn.

        Both have the same `tokenization`. Nothing is computed yet; what is known of ``state`` is not computed again.

        Args:
            state: A state of this backend that all of ``others`` continue.
            others: States of the other backend, with their ``token_ids``.

        Raises:
            BackendError: A state does not continue ``state``.
        """
        ...

    async def score(self, states: Sequence[State], completions: Sequence[Sequence[Completion]]) -> list[list[float]]:
        """Return log p_ref(token_ids | state) in nats for completions drawn elsewhere, per state.

        A token outside of a truncated support, or of the vocabulary, gives minus infinity. Only the completions' own
        tokens count: not the prompt, not the state's.

        Raises:
            TokenizerMismatchError: Going by their `Completion.finish_reason`, the model that drew the completions ends
                responses with other tokens than this one, where that is known; see `backends.endings`.
        """
        ...

    async def aclose(self) -> None:
        """Free what the backend holds; harmless when called twice. Other calls then raise `BackendClosedError`."""
        ...

    async def __aenter__(self) -> Self:
        """Return the backend itself."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the backend."""
        ...
