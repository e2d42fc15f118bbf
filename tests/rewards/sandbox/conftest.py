"""Every sandbox that works here, and a look at what a run leaves behind."""

from __future__ import annotations

import pytest

from rewards.sandbox import Sandbox, SandboxUnavailableError, select
from tests.rewards.sandbox.leftovers import Leftovers


@pytest.fixture(params=["bubblewrap", "docker", "unsafe"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    try:
        return select(request.param)
    except SandboxUnavailableError as error:
        pytest.skip(str(error).splitlines()[0])


@pytest.fixture(params=["bubblewrap", "docker"])
def isolated(request: pytest.FixtureRequest) -> Sandbox:
    try:
        return select(request.param)
    except SandboxUnavailableError as error:
        pytest.skip(str(error).splitlines()[0])


@pytest.fixture
def leftovers() -> Leftovers:
    return Leftovers()
