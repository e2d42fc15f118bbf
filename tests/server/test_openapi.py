"""The OpenAPI description against the server: schemathesis sends what it allows, and what it does not."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

from backends.scripted import ScriptedBackend
from ets_agent import ETSConfig, GuidedReasoning, Policy
from ets_agent.keys import Keys
from ets_agent.server import create_app
from tests.server.served import SCRIPT, Served

CASES = int(os.environ.get("ETS_SCHEMATHESIS_EXAMPLES", "250"))
"""Generated requests for each operation, besides those by which schemathesis covers each keyword of the schema."""
KEY = "secret"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served(ScriptedBackend(SCRIPT), keys=[KEY]) as served:
        yield served


def described(keys: Keys) -> Any:
    reasoning = GuidedReasoning(ScriptedBackend(SCRIPT), policy=Policy(max_tokens=64), config=ETSConfig(max_tokens=32))
    return create_app(reasoning, keys=keys).openapi()


DOCUMENT = described(Keys([KEY]))
schema = schemathesis.openapi.from_dict(DOCUMENT)
statuses: dict[int, int] = {}


def check_of(path: str, method: str) -> Callable[..., None]:
    """Return a test of one operation."""

    @schema.include(path=path, method=method).parametrize()
    @hypothesis.settings(max_examples=CASES, suppress_health_check=list(hypothesis.HealthCheck), derandomize=True)
    def test(case: schemathesis.Case, served: Served) -> None:
        response = case.call(base_url=served.url, headers={"Authorization": f"Bearer {KEY}"})
        statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
        case.validate_response(response, excluded_checks=[positive_data_acceptance])

    return test


# A name for each: schemathesis calls all its tests of one function alike, and of tests that are called alike, those who
# distribute tests over processes run only one.
for _path, _methods in DOCUMENT["paths"].items():
    for _method in _methods:
        globals()[f"test_the_server_does_what_it_says_of_{_method}{re.sub('[^a-z]+', '_', _path)}"] = check_of(
            _path, _method.upper()
        )


def test_there_were_many_cases_and_none_was_the_servers_fault() -> None:
    assert sum(statuses.values()) > 2000, statuses
    assert max(statuses) < 500
    assert statuses[200] > 400


def test_ceilings_and_names_are_described() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    fields = schemas["ChatCompletionRequest"]["properties"]
    assert fields["model"]["enum"] == ["scripted"]
    assert {"maximum": 8, "minimum": 1, "type": "integer"} in fields["n"]["anyOf"]
    assert {"maximum": 64, "minimum": 1, "type": "integer"} in fields["max_completion_tokens"]["anyOf"]
    assert set(schemas["EtsOptions"]["properties"]) == {"reward", "effort", "settings", "timeout", "token_budget"}


def test_each_error_that_can_come_is_described() -> None:
    responses = DOCUMENT["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert set(responses) == {"200", *(str(status) for status in (400, 401, 404, 408, 413, 415, 429, 500, 502, 503))}
    assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
    assert "422" not in str(DOCUMENT["paths"])


def test_keys_are_described_where_they_are_needed() -> None:
    operations = {path: next(iter(methods.values())) for path, methods in DOCUMENT["paths"].items()}
    assert {path for path, operation in operations.items() if "security" not in operation} == {"/healthz"}
    assert "securitySchemes" not in described(Keys())["components"]


def test_the_description_is_served(served: Served) -> None:
    assert served.ask("GET", "/openapi.json", key=KEY).json == DOCUMENT


def test_those_who_are_not_let_in_are_described(scripted: Served) -> None:
    paths = scripted.ask("GET", "/openapi.json").json["paths"]
    assert {"403", "421"} <= set(paths["/v1/models"]["get"]["responses"])
    assert not {"401", "403", "421"} & set(paths["/healthz"]["get"]["responses"])
