"""Figures for Prometheus: requests and how long they take, tokens, runs under way, waiting and cut short."""

from __future__ import annotations

import time

from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backends import Limiter
from ets_agent.guided import GuidedAnswer

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_NO_ROUTE = "none"
_NO_METHOD = "other"
_METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}
_OUTCOME = "outcome"


def note_outcome(scope: Scope, status: int) -> None:
    """Note how a response has ended that had begun with another status."""
    scope.setdefault("state", {})[_OUTCOME] = status


class Metrics:
    """The figures of one server.

    Args:
        places: Where runs are counted.
    """

    def __init__(self, places: Limiter) -> None:
        """Begin at zero."""
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "ets_requests",
            "Requests by route and status; 499 where the client hung up.",
            ["method", "route", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "ets_request_seconds",
            "Seconds from a request's headers to the end of its response.",
            ["route"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._tokens = Counter("ets_tokens", "Tokens of finished runs by kind.", ["kind"], registry=registry)
        self._cut_short = Counter(
            "ets_runs_cut_short", "Runs that a deadline or token budget has ended.", ["reason"], registry=registry
        )
        self._finished = Counter(
            "ets_runs_finished", "Runs with an answer, those cut short included.", registry=registry
        )
        active = Gauge("ets_runs_active", "Runs under way.", registry=registry)
        active.set_function(lambda: places.active)
        waiting = Gauge("ets_runs_waiting", "Runs that wait for a place.", registry=registry)
        waiting.set_function(lambda: places.waiting)
        for kind in ("candidate", "rollout", "scoring"):
            self._tokens.labels(kind)
        for reason in ("timeout", "budget"):
            self._cut_short.labels(reason)

    def answered(self, answer: GuidedAnswer) -> None:
        """Count a run that has ended with an answer."""
        usage = answer.usage
        self._finished.inc()
        self._tokens.labels("candidate").inc(usage.candidate_tokens)
        self._tokens.labels("rollout").inc(usage.rollout_tokens)
        self._tokens.labels("scoring").inc(usage.scoring_tokens)
        if answer.cut_short:
            self._cut_short.labels(answer.finish_reason).inc()

    def requested(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            method: Its method.
            route: The pattern of its path; None where there is none.
            status: The status of the response.
            seconds: How long it took.
        """
        # Whatever strangers make up must not become names of series, which are kept for ever.
        known = method if method in _METHODS else _NO_METHOD
        self._requests.labels(known, route or _NO_ROUTE, str(status)).inc()
        self._seconds.labels(route or _NO_ROUTE).observe(seconds)

    def page(self) -> Response:
        """Return all figures in Prometheus' text format."""
        return Response(generate_latest(self._registry), headers={"content-type": CONTENT_TYPE_LATEST})


class Measured:
    """Middleware that counts requests.

    Args:
        app: What answers them.
        metrics: The figures.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """Keep both."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500  # What uvicorn answers where the application did not.

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route = scope.get("route")
            self._metrics.requested(
                scope["method"],
                route.path_format if isinstance(route, Route) else None,
                scope.get("state", {}).get(_OUTCOME, status),
                time.perf_counter() - began,
            )
