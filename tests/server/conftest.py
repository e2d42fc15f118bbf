"""Servers that many tests share."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

import backends
from backends.scripted import ScriptedBackend
from ets_agent import ETSConfig, Policy
from tests.server.served import SCRIPT, Served


@pytest.fixture(scope="module")
def scripted() -> Iterator[Served]:
    """A server without keys over a scripted model."""
    with Served(ScriptedBackend(SCRIPT)) as served:
        yield served


@pytest.fixture(scope="module")
def tiny() -> Iterator[Served]:
    """A server with a key over the embedded model."""
    policy, config = Policy(max_tokens=96), ETSConfig(max_tokens=64)
    with Served(backends.load("tiny/qwen3"), keys=["secret"], policy=policy, config=config) as served:
        yield served


@pytest.fixture
def client(tiny: Served) -> Iterator[openai.OpenAI]:
    """OpenAI's own client of that server."""
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="secret", max_retries=0) as client:
        yield client
