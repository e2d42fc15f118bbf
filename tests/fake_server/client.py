"""A plain HTTP client, for tests of the fake server itself and for tests that want to look at it from outside."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from tests.fake_server.process import FakeProcess
from tests.fake_server.server import FakeServer


@dataclass
class Reply:
    """An answer that has been read; header names are in lower case."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.raw)

    @property
    def choices(self) -> list[Any]:
        """What was drawn."""
        assert self.status == 200, self.raw
        choices: list[Any] = self.json["choices"]
        return choices


@contextmanager
def sent(url: str, path: str, body: Any = None, **headers: str) -> Iterator[http.client.HTTPConnection]:
    """Send a request and leave it to the test to read the answer."""
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)) as connection:
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        kind = {} if data is None else {"content-type": "application/json"}
        connection.request("GET" if body is None else "POST", path, data, {**kind, **given})
        yield connection


def call(server: FakeServer | FakeProcess, path: str, body: Any = None, **headers: str) -> Reply:
    """Send a request and read the answer; underscores in header names are hyphens."""
    with sent(server.url, path, body, **headers) as connection:
        response = connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.headers.items()}, response.read())
