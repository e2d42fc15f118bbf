"""The servers that `make test-vllm` has started; without them these tests are skipped."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

import backends
from backends import Backend

from .servers import REFERENCE, SMALL, Server


def _name(server: Server) -> str:
    url = server.url
    if url is None:
        pytest.skip("no vLLM server runs; `make test-vllm` starts one")
    return f"vllm/{server.model}@{url}"


@pytest.fixture(scope="session")
def reference_name() -> str:
    return _name(REFERENCE)


@pytest.fixture(scope="session")
def small_name() -> str:
    return _name(SMALL)


@pytest.fixture
async def reference(reference_name: str) -> AsyncIterator[Backend]:
    """tiny/qwen3, telling plain log-probabilities."""
    async with await backends.connect(reference_name) as backend:
        yield backend


@pytest.fixture
async def small(small_name: str) -> AsyncIterator[Backend]:
    """tiny/qwen3-small, telling log-probabilities of what it samples."""
    async with await backends.connect(small_name) as backend:
        yield backend
