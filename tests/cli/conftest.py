"""The command line in this process, over a scripted model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import backends
from backends import Backend
from backends.enumerable import EnumerableBackend
from backends.scripted import ScriptedBackend
from ets_agent.cli.app import app
from tests.cli.fake_ets import RESPONSES

Ets = Callable[..., Result]


class Loader:
    """Stands in for `backends.load` and remembers what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.prompts: list[Any] = []
        self.make: Callable[[], Backend] = lambda: ScriptedBackend(self._respond)

    def __call__(self, name: str, **options: Any) -> Backend:
        self.calls.append((name, options))
        return self.make()

    def _respond(self, prompt: Any) -> dict[str, float]:
        self.prompts.append(prompt)
        return RESPONSES


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    loader = Loader()
    monkeypatch.setattr(backends, "load", loader)
    return loader


@pytest.fixture
def ets(loader: Loader) -> Ets:
    runner = CliRunner()

    def run(*arguments: str, input: str | bytes | None = None) -> Result:  # noqa: A002 - the runner's own name
        return runner.invoke(app, list(arguments), input=input)

    return run


@pytest.fixture
def closed(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the enumerable models that were closed; the loader gives a reference, then a proposal for it."""
    names: list[str] = []

    async def aclose(model: EnumerableBackend) -> None:
        names.append(model.name)

    monkeypatch.setattr(EnumerableBackend, "aclose", aclose)
    reference = EnumerableBackend.random(0, letters=["1 ", "#### 3"])
    loader.make = iter([reference, reference.perturbed(0.1, seed=1)]).__next__
    return names
