"""A short time limit for requests that are to meet it, and for no others: not those of connecting, say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from backends.endpoints.backend import EndpointBackend


@contextmanager
def hurried(backend: EndpointBackend, seconds: float) -> Iterator[None]:
    """Give each try of a request so many seconds."""
    client: Any = backend._dialect.client  # type: ignore[attr-defined]
    before, client._timeout = client._timeout, seconds
    yield
    client._timeout = before
