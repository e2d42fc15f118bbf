"""Chat through litellm: what a provider takes is what litellm says it takes, and what it returns is checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from backends.base import Capabilities, Prompt, SamplingParams
from backends.concurrency import all_of
from backends.endpoints import replies
from backends.endpoints.dialects import (
    Draw,
    EncodedPrompt,
    EndpointState,
    as_messages,
    messages_of,
    refuse_low_temperature,
    refuse_top_k,
)
from backends.endpoints.litellm_client import LiteLLMClient
from backends.endpoints.litellm_module import litellm
from backends.endpoints.replies import MalformedError
from backends.endpoints.without_tokens import WithoutTokens, as_draw
from backends.errors import CapabilityError, UnknownModelError
from backends.service import Service

_log = logging.getLogger(__name__)

_MOST_ROWS = 128
"""OpenAI's limit of ``n``."""
_SEEDS = 2**31 - _MOST_ROWS
"""Some providers take seeds of 32 bits with a sign; a server may add the row's number."""


class LiteLLMDialect(WithoutTokens):
    """One model of one provider, asked through litellm.

    Args:
        client: Sends the requests.
        name: What the model is called in messages.
        service: Who is asked.
        parameters: What the provider takes, see `parameters`.
        claude: Whether it is a model of Anthropic's, which refuse a temperature and a top-p in the same request.

    Raises:
        CapabilityError: The length of an answer cannot be limited.
    """

    def __init__(
        self, client: LiteLLMClient, *, name: str, service: Service, parameters: Sequence[str], claude: bool
    ) -> None:
        """Ask nothing yet."""
        self._client = client
        self.service = service
        self.model = name
        self._parameters = frozenset(parameters)
        self._claude = claude
        budgets = [field for field in ("max_tokens", "max_completion_tokens") if field in self._parameters]
        if not budgets:
            raise CapabilityError(f"{name} takes no max_tokens, so the length of its answers cannot be limited")
        self._budget = budgets[0]
        self._several = "n" in self._parameters
        self._tells_logprobs = "logprobs" in self._parameters
        self._told_logprobs = False
        self.most_rows = _MOST_ROWS if self._several else 1

    @property
    def capabilities(self) -> Capabilities:
        """What litellm says of the provider, as far as answers did not show otherwise."""
        return Capabilities(
            continue_prefix=False,
            logprobs=self._tells_logprobs,
            score=False,
            tempered_logprobs=False,
            tempered_score=False,
            full_support=False,  # A provider may truncate by itself, and nothing shows it.
            seed="seed" in self._parameters,
            chat=True,
            confidence=self._tells_logprobs,
        )

    @property
    def raw_logprobs(self) -> bool:
        """Not known, so log-probabilities are used at plain sampling parameters only."""
        return False

    def check(self, params: SamplingParams) -> None:
        """Refuse what the provider does not take."""
        refuse_low_temperature(params)
        refuse_top_k(params)
        for field, given, neutral in (
            ("temperature", params.temperature, 1.0),
            ("top_p", params.top_p, 1.0),
            ("stop", params.stop, ()),
        ):
            if given != neutral and field not in self._parameters:
                raise CapabilityError(f"{self.model} takes no {field}, which is {given}; allowed: {neutral}")

    async def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Return chat messages; a text is what the user says."""
        return as_messages(prompt)

    async def draw(self, state: EndpointState, n: int, *, tokens: int, seed: int, logprobs: bool) -> list[Draw]:
        """Draw n answers; see `Dialect.draw`.

        With one request, where the provider gives as many answers as it is asked for; otherwise, with further ones.
        """
        first = n if self._several else 1
        draws = await self._ask(state, first, tokens=tokens, seed=seed, logprobs=logprobs)
        if len(draws) < first:
            self._several = False
            _log.info("%s gives %d answers to a request for %d; asking for one each", self.model, len(draws), first)
        others = await all_of(
            [self._ask(state, 1, tokens=tokens, seed=seed + row, logprobs=logprobs) for row in range(len(draws), n)]
        )
        return draws + [draw for other in others for draw in other]

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def check_open(self) -> None:
        """Refuse to be used after `aclose`."""
        self._client.check_open()

    async def _ask(self, state: EndpointState, n: int, *, tokens: int, seed: int, logprobs: bool) -> list[Draw]:
        """Draw n answers with one request, or fewer where the provider gives no more."""
        wanted = logprobs and self._tells_logprobs
        body = {
            "messages": messages_of(state),
            self._budget: tokens,
            **self._sampling(state.params),
            **({"n": n} if n > 1 else {}),
            **({"seed": seed % _SEEDS} if "seed" in self._parameters else {}),
            **({"logprobs": True} if wanted else {}),
        }

        def read(response: Any) -> list[replies.Choice]:
            answer = _as_json(response)
            count = len(answer["choices"])
            return replies.chats(
                answer,
                count if 0 < count < n else n,
                budget=tokens,
                logprobs=wanted and self._has_logprobs(answer, needed=state.params.confidence),
                exact=False,  # Where a provider tells no number of tokens, litellm estimates it.
            )

        choices = await self._client.ask(body, read, rank=state.begun)
        return [as_draw("", choice, state.params.stop) for choice in choices]

    def _sampling(self, params: SamplingParams) -> dict[str, Any]:
        """Return the sampling parameters as they are sent.

        Neutral ones are sent as well, because providers have defaults of their own.
        """
        fields: dict[str, Any] = {"temperature": 0.0 if params.greedy else params.temperature, "top_p": params.top_p}
        if self._claude:  # Its defaults are neutral, and it takes one of the two.
            fields = {field: value for field, value in fields.items() if value != 1}
        if params.stop:
            fields["stop"] = list(params.stop)
        return {field: value for field, value in fields.items() if field in self._parameters}

    def _has_logprobs(self, answer: Mapping[str, Any], *, needed: bool) -> bool:
        """Whether an answer has the log-probabilities that were asked for.

        Raises:
            MalformedError: Earlier ones had them.
            CapabilityError: They are needed, and no answer ever had them.
        """
        if all(choice["logprobs"] is not None for choice in answer["choices"]):
            self._told_logprobs = True
            return True
        if self._told_logprobs:
            raise MalformedError("log-probabilities are missing")
        expected, self._tells_logprobs = self._tells_logprobs, False
        text = f"{self.model} returns no log-probabilities, although litellm lists them among what it takes"
        if needed:
            raise CapabilityError(f"{text}; a reward that needs them cannot be used with it")
        if expected:  # Requests that were under way, or are tried again, find what is known by now.
            _log.warning("%s; going on without", text)
        return False


def parameters(model: str) -> list[str]:
    """Return the parameters of OpenAI's protocol that a provider takes, as litellm knows them; nothing is sent.

    Raises:
        UnknownModelError: litellm has no such provider.
    """
    known = litellm.get_supported_openai_params(model=model) if model.rpartition("/")[2].strip() else None
    if known is None:
        try:
            litellm.get_llm_provider(model=model.rstrip("/ "))
        except litellm.exceptions.BadRequestError:
            raise UnknownModelError(
                f"litellm knows no provider for {model!r}; allowed: PROVIDER/MODEL, such as anthropic/claude-sonnet-4-5"
            ) from None
        # A provider that the user has made; litellm takes the same way.
        known = litellm.get_supported_openai_params(model=model, custom_llm_provider="openai")
    return list(known or [])


def service(model: str, address: str | None) -> Service:
    """Return whose model it is, as litellm calls both, and at which address it is asked where that is given."""
    try:
        name, provider, *_ = litellm.get_llm_provider(model=model)
    except litellm.exceptions.BadRequestError:  # One that the user has made.
        provider, _, name = model.rpartition("/")
    if address is None:
        return Service(provider=provider, model=name)
    return Service.at(address, provider=provider, model=name)


def _as_json(response: Any) -> dict[str, Any]:
    """Return litellm's answer as OpenAI's protocol has it, as far as it is used, its choices numbered in order.

    Raises:
        MalformedError: It has no choices.
    """
    try:
        choices = [
            {
                "index": index,
                "finish_reason": choice.finish_reason,
                "message": {"content": choice.message.content},
                "logprobs": _logprobs(getattr(choice, "logprobs", None)),
            }
            for index, choice in enumerate(response.choices)
        ]
    except (AttributeError, TypeError):
        raise MalformedError("it has no choices with messages") from None
    usage = getattr(response, "usage", None)
    return {"choices": choices, "usage": {"completion_tokens": getattr(usage, "completion_tokens", None)}}


def _logprobs(told: Any) -> dict[str, Any] | None:
    """Return a choice's log-probabilities; None where there are none."""
    entries = told.get("content") if isinstance(told, Mapping) else getattr(told, "content", None)
    if not isinstance(entries, list):
        return None
    return {"content": [{"logprob": e.get("logprob") if isinstance(e, Mapping) else e.logprob} for e in entries]}
