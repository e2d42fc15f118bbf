from __future__ import annotations

import json

import pytest

import backends
from backends import ModelInfo
from ets_agent import __version__
from tests.cli.conftest import Ets


@pytest.fixture(autouse=True)
def _models(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [
        ModelInfo(name="tiny/one", parameters=1_234_567, size=2_500_000, summary="A model."),
        ModelInfo(name="tiny/another", parameters=89, size=1_000, summary="Another."),
    ]
    monkeypatch.setattr(backends, "available", lambda: models)


def test_models_are_listed_in_columns(ets: Ets) -> None:
    assert ets("models").stdout.splitlines() == [
        "MODEL         PARAMETERS    SIZE  SUMMARY",
        "tiny/one       1,234,567  2.5 MB  A model.",
        "tiny/another          89  0.0 MB  Another.",
    ]


def test_models_are_listed_as_json(ets: Ets) -> None:
    models = json.loads(ets("models", "--json").stdout)
    assert models[0] == {"name": "tiny/one", "parameters": 1_234_567, "size": 2_500_000, "summary": "A model."}


def test_a_missing_checkpoint_is_one_line(ets: Ets, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> list[ModelInfo]:
        raise FileNotFoundError(2, "No such file", "card.json")

    monkeypatch.setattr(backends, "available", missing)
    outcome = ets("models")
    assert outcome.exit_code == 1
    assert outcome.stderr.startswith("ets: error: FileNotFoundError: ")


def test_version(ets: Ets) -> None:
    assert ets("--version").stdout == f"ets-agent {__version__}\n"
