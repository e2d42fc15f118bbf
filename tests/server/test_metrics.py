"""The figures for Prometheus, read by Prometheus' own parser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backends.scripted import ScriptedBackend
from tests.server.models import Gated
from tests.server.served import CHAT, LOW, SCRIPT, Served, wait_until


@pytest.fixture
def served() -> Iterator[Served]:
    with Served(ScriptedBackend(SCRIPT)) as served:
        yield served


def figures(served: Served) -> dict[tuple[str, ...], float]:
    """Return all samples by name and by the values of their labels, in the order of the labels' names."""
    page = served.ask("GET", "/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(page.text))
    assert len({family.name for family in families}) == len(families)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_requests_are_counted_by_route_and_status(served: Served) -> None:
    served.chat(**LOW)
    served.chat(**LOW, stream=True)
    served.chat(model="another")
    served.ask("GET", "/v1/models/one")
    served.ask("GET", "/v1/models/two/three")
    served.ask("GET", "/made/up")
    served.ask("PROPFIND", "/made/up/too")
    served.ask("DELETE", "/healthz")
    seen = figures(served)
    chat = "/v1/chat/completions"
    assert seen["ets_requests_total", "POST", chat, "200"] == 2
    assert seen["ets_requests_total", "POST", chat, "404"] == 1
    assert seen["ets_requests_total", "GET", "/v1/models/{model}", "404"] == 2
    assert seen["ets_requests_total", "GET", "none", "404"] == 1
    assert seen["ets_requests_total", "other", "none", "404"] == 1
    assert seen["ets_requests_total", "DELETE", "/healthz", "405"] == 1
    assert seen["ets_request_seconds_count", chat] == 3
    assert seen["ets_request_seconds_bucket", "+Inf", chat] == 3
    assert seen["ets_request_seconds_sum", chat] > 0


def test_those_who_are_not_let_in_are_counted() -> None:
    with Served(ScriptedBackend(SCRIPT), keys=["secret"]) as served:
        served.chat()
        page = served.ask("GET", "/metrics", key="secret")
        assert 'ets_requests_total{method="POST",route="none",status="401"} 1.0' in page.text


def test_tokens_are_counted_by_kind(served: Served) -> None:
    usages = [choice["ets"]["usage"] for choice in served.chat(n=2).json["choices"]]
    served.chat(stream=True)
    seen = figures(served)
    for kind in ("candidate", "rollout"):
        assert seen["ets_tokens_total", kind] >= sum(usage[f"{kind}_tokens"] for usage in usages) > 0
    assert seen["ets_tokens_total", "scoring"] == 0
    assert seen["ets_runs_finished_total",] == 3


def test_runs_that_were_cut_short_are_counted(served: Served) -> None:
    served.chat(ets={"token_budget": 5})
    seen = figures(served)
    assert seen["ets_runs_cut_short_total", "budget"] == 1
    assert seen["ets_runs_cut_short_total", "timeout"] == 0


def test_what_runs_and_waits_is_told() -> None:
    backend = Gated()
    with Served(backend, max_concurrency=1) as served, served.asked(CHAT | LOW), served.asked(CHAT | LOW):
        wait_until(lambda: served.reasoning.places.waiting == 1)
        seen = figures(served)
        assert (seen["ets_runs_active",], seen["ets_runs_waiting",]) == (1, 1)
        backend.open()
        names = ("ets_runs_finished_total", "ets_runs_active", "ets_runs_waiting")
        wait_until(lambda: [figures(served)[name,] for name in names] == [2, 0, 0])


def test_who_hung_up_is_counted() -> None:
    backend = Gated()
    with Served(backend) as served:
        with served.asked(CHAT):
            wait_until(lambda: backend.waiting == 1)
        wait_until(lambda: ("ets_requests_total", "POST", "/v1/chat/completions", "499") in figures(served))
