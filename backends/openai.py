"""Models behind OpenAI-compatible servers: vLLM with everything, others with what they have."""

from __future__ import annotations

import os
from typing import Any, Self

from pydantic import SecretStr

from backends.concurrency import run_in_thread
from backends.endpoints import options
from backends.endpoints.backend import EndpointBackend
from backends.endpoints.client import Client
from backends.endpoints.probing import Api, find_dialect
from backends.limits import Limiter
from backends.retries import RetryPolicy

VLLM_URL = "http://localhost:8000/v1"
OPENAI_URL = "https://api.openai.com/v1"


class OpenAIBackend(EndpointBackend):
    """A model behind a server that speaks OpenAI's protocol.

    What the server can do is found out when the connection is made, and becomes `capabilities`:

    - vLLM takes and returns token ids: any number of steps, exact log-probabilities, scores of given tokens.
    - A server of plain completions continues text; prefixes are tokenized anew, and nothing can be scored.
    - A server of chat completions draws whole answers only, so ``num_steps=1``.
    """

    @classmethod
    async def connect(
        cls,
        model: str,
        base_url: str,
        *,
        name: str | None = None,
        api_key: str | SecretStr | None = None,
        key_hint: str = "the argument api_key",
        api: Api = "auto",
        retries: RetryPolicy | None = None,
        max_concurrency: int | Limiter = options.DEFAULT_CONCURRENCY,
        timeout: float = options.DEFAULT_TIMEOUT,  # noqa: ASYNC109 - of each request
        connect_timeout: float = 30.0,
    ) -> Self:
        """Connect to a server, and find out what it can do with a few small requests.

        Args:
            model: The model's name on the server.
            base_url: Address of the API, such as ``http://localhost:8000/v1``.
            name: What to call the model; by default its name and address.
            api_key: Sent as bearer token; None where the server asks for none.
            key_hint: Where the key comes from, for the message when it is refused.
            api: ``tokens``, ``completions`` or ``chat``, instead of the best that the server understands.
            retries: What is tried again, how often and for how long; by default six times within twice ``timeout``.
            max_concurrency: Most requests at the same time, or a limiter, which several backends may share.
            timeout: Seconds that a single try may take, from connecting to the last byte.
            connect_timeout: Seconds that the server has for any answer to the first request, which asks for its models
                and has it compute nothing; after that there is no other try.

        Raises:
            EndpointError: The server cannot be reached, or refuses the key.
            BackendError: It does not have the model, or an argument is out of its range.
        """
        sending = options.checked(
            model=model, api_key=api_key, retries=retries, max_concurrency=max_concurrency, timeout=timeout
        )
        options.check_seconds("connect_timeout", connect_timeout)
        client = Client(
            base_url, api_key=sending.key, key_hint=key_hint, retries=sending.retries, timeout=sending.timeout
        )
        try:
            dialect = await find_dialect(client, model, api=api, first_within=connect_timeout)
        except BaseException:
            await client.aclose()
            raise
        return cls(dialect, name=name or f"{model}@{client.url}", limiter=sending.limiter)

    @classmethod
    def load(cls, model: str, base_url: str, **arguments: Any) -> Self:
        """Connect from code that is not async; inside a running event loop, it waits as long as the server takes.

        Arguments and errors as for `connect`.
        """
        return run_in_thread(cls.connect(model, base_url, **arguments))


async def connect_vllm(model: str, url: str | None, **arguments: Any) -> OpenAIBackend:
    """Connect to a vLLM server; the key is that of ``VLLM_API_KEY``, which the server reads as well."""
    arguments.setdefault("api_key", os.environ.get("VLLM_API_KEY"))
    arguments.setdefault("key_hint", "environment variable VLLM_API_KEY")
    return await OpenAIBackend.connect(model, url or VLLM_URL, **arguments)


async def connect_openai(model: str, url: str | None, **arguments: Any) -> OpenAIBackend:
    """Connect to OpenAI, or to the address of ``OPENAI_BASE_URL``, with the key of ``OPENAI_API_KEY``."""
    arguments.setdefault("api_key", os.environ.get("OPENAI_API_KEY"))
    arguments.setdefault("key_hint", "environment variable OPENAI_API_KEY")
    return await OpenAIBackend.connect(model, url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL, **arguments)
