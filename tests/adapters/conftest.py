"""The tool over a scripted model, for every framework's tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from backends.scripted import ScriptedBackend
from ets_agent import ETSConfig, GuidedReasoning, Policy
from tests.adapters.chat_server import ChatServer

QUESTION = "How many apples are 12 apples and 30 apples?"
ARGUMENTS: dict[str, Any] = {
    "question": QUESTION,
    "reward": {"name": "self_consistency", "extractor": None},
    "effort": "low",
    "max_tokens": 32,
    "timeout": None,
}
"""As strict mode has it: everything is given."""
REFUSED: dict[str, Any] = {**ARGUMENTS, "reward": {"name": "code_tests", "test": "assert True"}}
REFUSAL = "reward 'code_tests' is not allowed here; allowed: self_consistency, json_schema, regex, similarity"
SCRIPT = {"12 + 30 = 42\n#### 42": 8.0, "12 + 30 = 43\n#### 43": 1.0}


class Asked(GuidedReasoning):
    """Remembers what it was asked."""

    def __init__(self, backend: ScriptedBackend, **options: Any) -> None:
        super().__init__(backend, config=ETSConfig(max_tokens=32, seed=0), **options)
        self.scripted = backend
        self.asked: list[Any] = []

    def plan(self, request: Any) -> Any:
        self.asked.append(request)
        return super().plan(request)


@pytest.fixture
async def reasoning() -> AsyncIterator[Asked]:
    async with Asked(ScriptedBackend(SCRIPT), policy=Policy(max_tokens=64)) as tool:
        yield tool


@pytest.fixture
async def slow() -> AsyncIterator[Asked]:
    """It takes longer than any test waits."""
    async with Asked(ScriptedBackend(SCRIPT, delay=60)) as tool:
        yield tool


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as running:
        yield running


async def until_active(tool: Asked, count: int = 1) -> None:
    async with asyncio.timeout(10):
        while tool.scripted.active < count:
            await asyncio.sleep(0.001)
