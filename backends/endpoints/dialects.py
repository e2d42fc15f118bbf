"""How a server is asked for continuations: by token ids (vLLM), by text (plain completions), or by chat messages.

A dialect knows requests and answers; what a state is, and when a response is over, is `backends.endpoints.backend`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from backends.base import Capabilities, Prompt, SamplingParams, State
from backends.endpoints.replies import Choice, Told
from backends.errors import BackendError, CapabilityError
from backends.service import Service
from backends.tokenization import Tokenization

_TEMPERATURES = (0.01, 2.0)
"""The lowest above 0, to which vLLM raises lower ones, and the highest of OpenAI's protocol."""

NEUTRAL: Mapping[str, Any] = {
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""What changes nothing that is drawn. A server may have other defaults, from the model's generation config, say."""

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What tokens that end within a character are decoded to, in place of that character."""

EncodedPrompt = tuple[int, ...] | str | tuple[tuple[str, str], ...]
"""A prompt as a dialect sends it: token ids, text, or messages as (role, content)."""


@dataclass(frozen=True, kw_only=True)
class EndpointState(State):
    """A partial response, as a plain value: any server of the same model can go on from it.

    Attributes:
        prompt: The prompt, encoded.
        params: Sampling parameters of the run.
        max_tokens: Budget of the response.
        raw: All text of the response, with what may turn out to be the beginning of a stop string; None where the state
            was adopted and only its tokens are known.
        split: Whether the last token ends within a character, whose text is not in ``raw``.
        begun: Number of the response in the order in which this process has begun them.
    """

    prompt: EncodedPrompt = field(repr=False)
    params: SamplingParams
    max_tokens: int
    raw: str | None = field(default="", repr=False)
    split: bool = False
    begun: int = field(default=0, compare=False, repr=False)

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt; None where it is sent as text."""
        known = isinstance(self.prompt, tuple) and all(isinstance(token, int) for token in self.prompt)
        return len(self.prompt) if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """A continuation of a state.

    Attributes:
        raw: Text of the whole response, from its beginning and past any stop string.
        num_tokens: Tokens drawn.
        stopped: Whether the response is over, whatever is left of its budget.
        token_ids: The tokens, where they are known.
        logprobs: Log-probability of each (nats), as the server tells it, where it was asked.
        split: As `EndpointState.split`.
        error: Why it is no continuation of the state after all; the rest then means nothing.
    """

    raw: str
    num_tokens: int
    stopped: bool
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] | None = None
    split: bool = False
    error: str | None = None


class Dialect(Protocol):
    """One way to ask one server."""

    @property
    def service(self) -> Service:
        """Who is asked."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What the server can do when it is asked this way."""
        ...

    @property
    def tokenization(self) -> Tokenization | None:
        """What the server's tokens mean, where they are known."""
        ...

    @property
    def context(self) -> int | None:
        """Most tokens of prompt and response together; None where that is not known."""
        ...

    @property
    def most_rows(self) -> int:
        """Most continuations of one request."""
        ...

    @property
    def raw_logprobs(self) -> bool:
        """Whether log-probabilities are always of the plain distribution, whatever is sampled from."""
        ...

    def check(self, params: SamplingParams) -> None:
        """Refuse sampling parameters that the server would not follow.

        Raises:
            CapabilityError: With what to do.
        """
        ...

    async def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Return a prompt as it is sent.

        Raises:
            PromptError: It cannot be sent this way.
        """
        ...

    async def draw(self, state: EndpointState, n: int, *, tokens: int, seed: int, logprobs: bool) -> list[Draw]:
        """Draw n continuations of so many tokens; row k has the seed ``seed + k``.

        With one request, as far as the server has it.

        Args:
            state: What to continue.
            n: How many rows; 1 where sampling is greedy.
            tokens: Most tokens of a row; where text is sent, a few more where a row would end within a character.
            seed: Of the first row.
            logprobs: Whether to tell log-probabilities.
        """
        ...

    async def score(self, state: EndpointState, rollouts: Sequence[Sequence[int]]) -> list[Told]:
        """Return the plain log-probabilities of given continuations' tokens, and their texts, with one request."""
        ...

    async def ends(self, state: EndpointState, token: int) -> bool | None:
        """Whether a token ends a response; None where one request does not tell."""
        ...

    async def aclose(self) -> None:
        """Close the connections; harmless when called twice."""
        ...

    def check_open(self) -> None:
        """Raise `BackendClosedError` after `aclose`."""
        ...


def failed_draw(choice: Choice) -> Draw:
    """Return what stands for a choice that is no continuation."""
    return Draw(raw="", num_tokens=0, stopped=True, error=choice.error)


def sampling_fields(params: SamplingParams) -> dict[str, Any]:
    """Return what every OpenAI-style server understands of the sampling parameters."""
    fields: dict[str, Any] = {"temperature": 0.0 if params.greedy else params.temperature, "top_p": params.top_p}
    return fields | ({"stop": list(params.stop)} if params.stop else {})


def refuse_temperature(params: SamplingParams) -> None:
    """Refuse temperatures beyond what OpenAI's protocol allows, and those of `refuse_low_temperature`.

    Raises:
        CapabilityError: With what is allowed.
    """
    refuse_low_temperature(params)
    if params.temperature > _TEMPERATURES[1]:
        raise CapabilityError(f"temperature is {params.temperature:g}; this server allows at most {_TEMPERATURES[1]:g}")


def refuse_low_temperature(params: SamplingParams) -> None:
    """Refuse temperatures that vLLM would raise; whether a server is vLLM, not every way to ask it shows.

    Raises:
        CapabilityError: With what is allowed.
    """
    lowest = _TEMPERATURES[0]
    if params.temperature < lowest and not params.greedy:
        raise CapabilityError(
            f"temperature is {params.temperature:g}, which a server may raise to {lowest}; allowed: 0, or at least "
            f"{lowest}"
        )


def refuse_top_k(params: SamplingParams) -> None:
    """Refuse top-k sampling, which OpenAI's protocol does not have.

    Raises:
        CapabilityError: With what is allowed.
    """
    if params.top_k:
        raise CapabilityError(f"this server has no top_k, which is {params.top_k}; allowed: 0")


def as_messages(prompt: Prompt) -> tuple[tuple[str, str], ...]:
    """Return a prompt as chat messages; a text is what the user says."""
    if isinstance(prompt, str):
        return (("user", prompt),)
    return tuple((message["role"], message["content"]) for message in prompt)


def listed(messages: Sequence[tuple[str, str]]) -> list[Mapping[str, str]]:
    """Return encoded chat messages as they are sent."""
    return [{"role": role, "content": content} for role, content in messages]


def ids_of(state: EndpointState) -> tuple[int, ...]:
    """Return the token ids of a state's prompt."""
    ids = tuple(part for part in state.prompt if isinstance(part, int))
    if len(ids) != len(state.prompt):
        raise _sent_otherwise("token ids")
    return ids


def messages_of(state: EndpointState) -> list[Mapping[str, str]]:
    """Return the chat messages of a state's prompt, as they are sent."""
    messages = [part for part in state.prompt if isinstance(part, tuple)]
    if len(messages) != len(state.prompt):
        raise _sent_otherwise("chat messages")
    return listed(messages)


def text_of(state: EndpointState) -> str:
    """Return the text of a state's prompt."""
    if not isinstance(state.prompt, str):
        raise _sent_otherwise("text")
    return state.prompt


def _sent_otherwise(kind: str) -> BackendError:
    return BackendError(f"this server is asked by {kind}, and the state's prompt is something else: begin anew with it")
