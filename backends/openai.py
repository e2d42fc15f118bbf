"""Models behind OpenAI-compatible servers: vLLM with everything, others with what they have."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from pydantic import SecretStr

from backends.endpoints.backend import EndpointBackend
from backends.endpoints.client import Client
from backends.endpoints.probing import Api, find_dialect
from backends.errors import BackendError
from backends.limits import Limiter
from backends.retries import RetryPolicy

T = TypeVar("T")

DEFAULT_CONCURRENCY = 32
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
        max_concurrency: int | Limiter = DEFAULT_CONCURRENCY,
        timeout: float = 300.0,  # noqa: ASYNC109 - of each request
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

        Raises:
            EndpointError: The server cannot be reached, or refuses the key.
            BackendError: It does not have the model.
        """
        if not timeout > 0:
            raise BackendError(f"timeout is {timeout} seconds; allowed: above 0")
        limiter = max_concurrency if isinstance(max_concurrency, Limiter) else Limiter(max_concurrency)
        client = Client(
            base_url,
            api_key=SecretStr(api_key) if isinstance(api_key, str) else api_key,
            key_hint=key_hint,
            retries=retries if retries is not None else RetryPolicy(deadline=2 * timeout),
            timeout=timeout,
        )
        try:
            dialect = await find_dialect(client, model, api=api)
        except BaseException:
            await client.aclose()
            raise
        return cls(dialect, name=name or f"{model}@{client.url}", limiter=limiter)

    @classmethod
    def load(cls, model: str, base_url: str, **options: Any) -> Self:
        """Connect from code that is not async; inside a running event loop, it waits as long as the server takes.

        Arguments and errors as for `connect`.
        """
        return finished(cls.connect(model, base_url, **options))


async def connect_vllm(model: str, url: str | None, **options: Any) -> OpenAIBackend:
    """Connect to a vLLM server; the key is that of ``VLLM_API_KEY``, which the server reads as well."""
    options.setdefault("api_key", os.environ.get("VLLM_API_KEY"))
    options.setdefault("key_hint", "environment variable VLLM_API_KEY")
    return await OpenAIBackend.connect(model, url or VLLM_URL, **options)


async def connect_openai(model: str, url: str | None, **options: Any) -> OpenAIBackend:
    """Connect to OpenAI, or to the address of ``OPENAI_BASE_URL``, with the key of ``OPENAI_API_KEY``."""
    options.setdefault("api_key", os.environ.get("OPENAI_API_KEY"))
    options.setdefault("key_hint", "environment variable OPENAI_API_KEY")
    return await OpenAIBackend.connect(model, url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL, **options)


def finished(work: Coroutine[Any, Any, T]) -> T:
    """Run something to its end in a thread with an event loop of its own, whether or not one runs here."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="ets-connect", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
