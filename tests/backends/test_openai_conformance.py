"""OpenAI-compatible servers of several kinds are put through the laws that every backend obeys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from backends import Backend, Prompt
from backends.openai import OpenAIBackend
from tests.fake_server import FakeServer, ScriptedModel

from .conformance import CHECKS, Check
from .test_conformance import QUESTION, SCRIPT

KINDS: dict[str, dict[str, Any]] = {
    "vllm scripted": {},
    "vllm processed": {"processed_logprobs": True},
    "vllm local": {},
    "vllm local processed": {"processed_logprobs": True},
    "completions": {"profile": "completions"},
    "completions without n": {"profile": "completions_no_n"},
}


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    model: Any
    if "local" in request.param:
        from tests.fake_server.local import LocalModel

        model = LocalModel(request.getfixturevalue("tiny"))
    else:
        model = ScriptedModel(SCRIPT)
    with FakeServer(model, **KINDS[request.param]) as server:
        yield server
        server.wait_idle()


@pytest.fixture
async def subject(server: FakeServer) -> AsyncIterator[tuple[Backend, Prompt]]:
    async with await OpenAIBackend.connect(server.model.name, server.base_url) as backend:
        yield backend, QUESTION


@pytest.mark.parametrize("law", CHECKS, ids=lambda law: law.__name__)
async def test_server_obeys(law: Check, subject: tuple[Backend, Prompt]) -> None:
    await law(*subject)
