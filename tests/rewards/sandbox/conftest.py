"""Every sandbox that works here, and a look at what a run leaves behind."""

from __future__ import annotations

import pytest

from rewards.sandbox import Sandbox
from tests.rewards.sandbox.available import available
from tests.rewards.sandbox.leftovers import Leftovers


@pytest.fixture(params=["bubblewrap", "docker", "unsafe"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    return available(request.param)


@pytest.fixture(params=["bubblewrap", "docker"])
def isolated(request: pytest.FixtureRequest) -> Sandbox:
    return available(request.param)


@pytest.fixture
def leftovers() -> Leftovers:
    return Leftovers()
