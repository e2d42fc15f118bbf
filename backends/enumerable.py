"""A language model so small that every response can be listed: exact p_ref, exact p*, exact energies.

    model = EnumerableBackend.random(seed=0)
    state = await model.begin("any prompt", max_tokens=4, params=SamplingParams())
    model.policy(state, reward, kl_coef=0.1)  # What ETS should sample from.

It obeys the whole backend contract, so that any algorithm can run on it and be compared with the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import numpy as np

from backends._enumeration import MASK, Canvas, EnumerableState, Logits, Tree
from backends.base import Backend, Capabilities, Completion, Prompt, SamplingParams, State
from backends.contract import BackendContext, check_budget, check_continues, check_counts, check_prompt, own_state
from backends.errors import BackendClosedError, BackendError
from backends.sampled import Floats
from backends.tokenization import Tokenization

END = ""
"""The end-of-sequence token's text; its id is the last one."""

Value = Callable[[Completion], float]
"""A reward r(y, x_0) of one response, minus infinity allowed."""


class EnumerableBackend(BackendContext):
    """A finite language model, autoregressive or of the masked-diffusion kind.

    The masked-diffusion variant fills a canvas of ``max_tokens`` positions, one after another in a random order, each
    given all that is on the canvas. A response ends at the first end-of-sequence token or stop string that has nothing
    masked before it; until then its text is what stands before the first masked position, which only grows.

    The prompt plays no part.

    Args:
        logits: The model.
        letters: Texts of the tokens, without the end-of-sequence token, which is added as the last one.
        diffusion: Whether it is a masked-diffusion model.
        name: What to call it.

    Raises:
        BackendError: The letters are not usable.
    """

    def __init__(
        self, logits: Logits, letters: Sequence[str], *, diffusion: bool = False, name: str = "enumerable"
    ) -> None:
        """Compute nothing yet."""
        if not letters or not all(letters) or len(set(letters)) != len(letters):
            raise BackendError(f"letters must be distinct, non-empty texts, at least one, not {list(letters)!r}")
        self._logits = logits
        self._vocabulary = (*letters, END)
        self._diffusion = diffusion
        self._name = name
        self._trees: dict[tuple[SamplingParams, int], Tree] = {}
        self._closed = False

    @classmethod
    def random(cls, seed: int, *, letters: Sequence[str] = "ab", spread: float = 1.0, diffusion: bool = False) -> Self:
        """Return a model with Gaussian logits, a function of the seed and the context alone.

        Args:
            seed: Of the logits.
            letters: As in the constructor.
            spread: Standard deviation of the logits.
            diffusion: Whether it is a masked-diffusion model.
        """
        noise = _noise(seed, spread, len(letters) + 1)
        return cls(noise, letters, diffusion=diffusion, name=f"enumerable-{seed}")

    @classmethod
    def from_tables(cls, tables: Mapping[str, Mapping[str, float]], *, name: str = "enumerable") -> Self:
        """Return an autoregressive model with given next-token probabilities.

        Args:
            tables: For each text so far, "" being the beginning, the weight of each next token; the token "" ends the
                response. Weights are normalized. A text that is not listed ends with certainty.
            name: What to call it.

        Raises:
            BackendError: A weight is not usable, or a text cannot come up.
        """
        letters = sorted({token for table in tables.values() for token in table} - {END})
        reachable = {"": None, **{text + token: None for text, table in tables.items() for token in table}}
        for text, table in tables.items():
            if text not in reachable:
                raise BackendError(f"the table of {text!r} can never be used: no other table leads to this text")
            if not all(math.isfinite(w) and w >= 0 for w in table.values()) or not any(table.values()):
                raise BackendError(f"the weights after {text!r} must be finite and at least 0, one of them above 0")

        def logits(canvas: Canvas, position: int) -> Floats:
            table = tables.get("".join(letters[token] for token in canvas), {END: 1.0})
            weights: Floats = np.array([table.get(token, 0.0) for token in (*letters, END)])
            with np.errstate(divide="ignore"):
                return np.log(weights)

        return cls(logits, letters, name=name)

    def perturbed(self, scale: float, *, seed: int) -> Self:
        """Return the same model with Gaussian noise of this standard deviation on its logits: a proposal for it."""
        noise = _noise(seed, scale, len(self._vocabulary))
        return type(self)(
            lambda canvas, position: self._logits(canvas, position) + noise(canvas, position),
            self._vocabulary[:-1],
            diffusion=self._diffusion,
            name=f"{self._name}±{scale:g}",
        )

    @property
    def name(self) -> str:
        """The model's name."""
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        """Everything."""
        return Capabilities()

    @property
    def tokenization(self) -> Tokenization:
        """What its tokens mean."""
        vocabulary = {text: token for token, text in enumerate(self._vocabulary)}
        return Tokenization.of(vocabulary, lambda _: (), {vocabulary[END]})

    def responses(self, state: State) -> dict[Completion, float]:
        """Return p_ref(x_0 | x_s) of every response that can follow from a state.

        Raises:
            BackendError: There are too many to list.
        """
        own = _own(state)
        own.tree.check_size()
        return own.tree.responses(own.tree.canvas(own))

    def policy(self, state: State, value: Value, *, kl_coef: float) -> dict[Completion, float]:
        """Return the optimal policy p*(x_0 | x_s) ∝ p_ref(x_0 | x_s) · exp(value(x_0) / λ); for λ = 0 its limit.

        Raises:
            BackendError: There are too many responses to list, or all have value minus infinity.
        """
        responses = self.responses(state)
        values = {response: value(response) for response in responses}
        best = max(values.values())
        if best == -math.inf:
            raise BackendError("every response has reward minus infinity, so no policy is better than another")
        tilted = {
            response: probability
            * (math.exp((values[response] - best) / kl_coef) if kl_coef > 0 else float(values[response] == best))
            for response, probability in responses.items()
        }
        total = math.fsum(tilted.values())
        return {response: weight / total for response, weight in tilted.items()}

    def log_energy(self, state: State, value: Value, *, kl_coef: float) -> float:
        """Return log E(y, x_s) = log E[exp(r / λ)] over p_ref(x_0 | x_s), in nats; λ above 0.

        Raises:
            BackendError: There are too many responses to list.
        """
        terms = [
            math.log(probability) + value(response) / kl_coef for response, probability in self.responses(state).items()
        ]
        largest = max(terms)
        if largest == -math.inf:
            return largest
        return largest + math.log(math.fsum(math.exp(term - largest) for term in terms))

    async def begin(self, prompt: Prompt, *, max_tokens: int, params: SamplingParams) -> State:
        """Return the empty response; see `backends.Backend.begin`."""
        self._check_open()
        check_prompt(prompt)
        check_budget(max_tokens)
        if (params, max_tokens) not in self._trees:
            self._trees[params, max_tokens] = Tree(
                self._logits, self._vocabulary, diffusion=self._diffusion, params=params, max_tokens=max_tokens
            )
        return self._trees[params, max_tokens].state((MASK,) * max_tokens)

    async def extend(self, state: State, n: int, *, tokens: int, seed: int) -> list[State]:
        """Draw n successors of a state; see `backends.Backend.extend`."""
        self._check_open()
        own = _own(state)
        check_counts(n, tokens)
        if own.finished:
            return [own] * n
        tree = own.tree
        start = tree.canvas(own)
        return [tree.state(tree.walk(start, tokens, row)[0]) for row in tree.uniforms(n, seed)]

    async def rollout(self, states: Sequence[State], n: int, *, seed: int) -> list[list[Completion]]:
        """Complete each state n times; see `backends.Backend.rollout`."""
        self._check_open()
        check_counts(n)
        return [
            [own.tree.completion(own.tree.canvas(own), row) for row in own.tree.uniforms(n, seed, index)]
            for index, own in enumerate(map(_own, states))
        ]

    def adopt(self, state: State, others: Sequence[State]) -> list[State]:
        """Return this model's states for those of another; see `backends.Backend.adopt`."""
        own = _own(state)
        length = len(own.tree.canvas(own))
        adopted: list[State] = []
        for other in others:
            check_continues(own, other)
            canvas = other.token_ids + (MASK,) * (length - len(other.token_ids))
            if len(canvas) > length or not all(MASK <= token < len(self._vocabulary) for token in canvas):
                raise BackendError(
                    f"{self._name} has {length} places for {len(self._vocabulary)} tokens here, and none for "
                    f"{other.token_ids}"
                )
            adopted.append(own.tree.state(canvas))
        return adopted

    async def score(self, states: Sequence[State], completions: Sequence[Sequence[Completion]]) -> list[list[float]]:
        """Return the log-probabilities of completions; see `backends.Backend.score`."""
        self._check_open()
        return [
            [own.tree.log_probability(own.tree.canvas(own), completion) for completion in group]
            for own, group in zip(map(_own, states), completions, strict=True)
        ]

    async def aclose(self) -> None:
        """Refuse further calls."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise BackendClosedError(f"{self._name} is closed")


def _noise(seed: int, scale: float, size: int) -> Logits:
    """Return Gaussian logits that are a function of seed, canvas and position."""

    def logits(canvas: Canvas, position: int) -> Floats:
        entropy = [seed, position, *(token - MASK for token in canvas)]
        return scale * np.random.default_rng(entropy).standard_normal(size)

    return logits


def _own(state: State) -> EnumerableState:
    return own_state(state, EnumerableState, "an enumerable model")


_: type[Backend] = EnumerableBackend
