"""Models of any provider that litellm knows: whole answers by chat, with log-probabilities where there are some."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr

from backends.base import Prompt, SamplingParams, State
from backends.endpoints import addresses, options
from backends.endpoints.backend import EndpointBackend
from backends.endpoints.by_litellm import LiteLLMDialect, parameters, service
from backends.endpoints.litellm_client import LiteLLMClient
from backends.endpoints.litellm_module import check_settings
from backends.endpoints.secrets import secrets_of
from backends.errors import BackendError
from backends.limits import Limiter
from backends.retries import RetryPolicy

_OWN = frozenset({
    "additional_drop_params", "allowed_openai_params", "api_base", "api_key", "base_url", "cache", "caching",
    "drop_params", "fallbacks", "litellm_call_id", "logprobs", "max_completion_tokens", "max_retries", "max_tokens",
    "messages", "model", "n", "num_retries", "retry_policy", "seed", "stop", "stream", "temperature", "timeout",
    "top_logprobs", "top_p",
})  # fmt: skip
"""Arguments of litellm's that belong to the backend."""


class LiteLLMBackend(EndpointBackend):
    """A model behind one of litellm's providers, asked by chat.

    It draws whole answers only, so ``num_steps=1``. What a provider takes is what litellm says; nothing is sent when
    the backend is made. A sampling parameter that the provider does not take is refused, not dropped.
    """

    def __init__(
        self,
        model: str,
        *,
        name: str | None = None,
        api_key: str | SecretStr | None = None,
        api_base: str | None = None,
        retries: RetryPolicy | None = None,
        max_concurrency: int | Limiter = options.DEFAULT_CONCURRENCY,
        timeout: float = options.DEFAULT_TIMEOUT,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            model: Provider and model, as litellm calls them, such as ``anthropic/claude-sonnet-4-5``.
            name: What to call the model; by default its name with ``litellm/`` before it.
            api_key: The provider's key; by default litellm reads it from the provider's environment variable.
            api_base: Address of the provider's API, where it is not the usual one.
            retries: What is tried again, how often and for how long; by default six times within twice ``timeout``.
            max_concurrency: Most requests at the same time, or a limiter, which several backends may share.
            timeout: Seconds that a single try may take.
            extra: Further arguments of `litellm.acompletion`, such as ``api_version`` or ``aws_region_name``.

        Raises:
            UnknownModelError: litellm knows no such provider.
            CapabilityError: The length of the provider's answers cannot be limited.
            BackendError: An argument is out of its range, or a setting of litellm's sends requests to other models.
        """
        sending = options.checked(
            model=model, api_key=api_key, retries=retries, max_concurrency=max_concurrency, timeout=timeout
        )
        if api_base is not None and addresses.credentials(addresses.checked(api_base)) is not None:
            raise BackendError(
                f"the address {addresses.shown_url(api_base)} has a user, which litellm cannot send; allowed: api_key"
            )
        if extra is not None and not isinstance(extra, Mapping):
            raise BackendError(f"extra is a {type(extra).__name__}; allowed: a mapping of arguments")
        extra = dict(extra or {})
        if own := sorted(_OWN & extra.keys()):
            raise BackendError(f"extra must not hold {own[0]!r}, which the backend sets itself")
        check_settings()
        name = name or f"litellm/{model}"
        key = sending.key.get_secret_value() if sending.key is not None else None
        known = parameters(model)
        self._places = sending.limiter
        client = LiteLLMClient(
            name,
            {**extra, "model": model, "api_key": key, "api_base": api_base},
            secrets=[key or "", *secrets_of(extra)],
            retries=sending.retries,
            limiter=sending.limiter,
            timeout=sending.timeout,
        )
        dialect = LiteLLMDialect(
            client,
            name=name,
            service=service(model, api_base),
            parameters=known,
            claude="claude" in model.lower(),
        )
        # A draw may need several requests, so it is the requests that are limited, and not the draws.
        super().__init__(dialect, name=name, limiter=Limiter(sys.maxsize))

    @property
    def limiter(self) -> Limiter:
        """The places for its requests."""
        return self._places

    async def begin(self, prompt: Prompt, *, max_tokens: int, params: SamplingParams) -> State:
        """Return the empty response to a prompt; see `EndpointBackend.begin`. It takes a place, but sends nothing."""
        async with self._places:
            return await super().begin(prompt, max_tokens=max_tokens, params=params)
