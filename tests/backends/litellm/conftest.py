"""Fixtures of the tests of litellm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backends.endpoints.litellm_module import litellm
from tests.fake_server import FakeServer, ScriptedModel

from .common import KEY, MODELS, SCRIPT, Stub


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(ScriptedModel(SCRIPT), api_key=KEY) as server:
        yield server
        server.wait_idle()


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    stub = Stub()
    monkeypatch.setattr(litellm, "acompletion", stub)
    return stub
