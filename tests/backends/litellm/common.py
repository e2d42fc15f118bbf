"""Backends of litellm over loopback or over a stub, and how they are asked."""

from __future__ import annotations

import asyncio
from typing import Any

import backends
from backends import Completion, SamplingParams
from backends.endpoints.litellm_module import litellm
from backends.litellm import LiteLLMBackend
from backends.retries import RetryPolicy
from tests.fake_server import FakeServer

KEY = "sk-only-for-this-test-0123456789"
SCRIPT = {"it is 4 #### 4": 3.0, "it is 5 #### 5": 2.0, "no": 1.0}
PLAIN = SamplingParams()
CONFIDENT = SamplingParams(confidence=True)
ONCE = RetryPolicy(attempts=1)
AT_ONCE = RetryPolicy(attempts=6, first_delay=0.0)
MODELS = ["openai/scripted", "hosted_vllm/scripted"]
"""litellm asks the first with OpenAI's SDK, and the second with HTTP clients of its own."""


def at(server: FakeServer, model: str = MODELS[0], **options: Any) -> LiteLLMBackend:
    defaults: dict[str, Any] = {"api_base": server.base_url, "api_key": KEY, "retries": ONCE}
    return LiteLLMBackend(model, **defaults | options)


async def draws(
    backend: backends.Backend, n: int, *, seed: int = 0, params: SamplingParams = PLAIN, max_tokens: int = 20
) -> list[Completion]:
    state = await backend.begin("2 + 2?", max_tokens=max_tokens, params=params)
    (drawn,) = await backend.rollout([state], n, seed=seed)
    return drawn


def texts(completions: list[Completion]) -> list[str]:
    return [completion.text for completion in completions]


def others() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


async def until_busy(server: FakeServer, requests: int = 1) -> None:
    await asyncio.to_thread(server.records.wait, lambda records: records.active >= requests)


async def until_idle(server: FakeServer) -> None:
    await asyncio.to_thread(server.wait_idle)


class Stub:
    """Stands for `litellm.acompletion`: keeps arguments, and answers or raises."""

    def __init__(self, outcome: Any = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.outcome = outcome

    async def __call__(self, **arguments: Any) -> Any:
        self.calls.append(arguments)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        if self.outcome is not None:
            return self.outcome
        choice = {"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
        return litellm.ModelResponse(choices=[choice] * arguments.get("n", 1))
