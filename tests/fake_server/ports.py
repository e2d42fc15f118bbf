"""A port that is nobody's but the test's: where no server listens yet, or none any more."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_port() -> Iterator[int]:
    """Keep a port for a server of this test, also before it is started, while it is gone, and where there is none.

    Connections to it are refused meanwhile. A port that is only known to be free may be taken by somebody else.
    """
    with socket.socket() as keeper:
        # Those who bind it with the same option, as servers do, may listen there; nobody is given it by chance.
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", 0))
        yield int(keeper.getsockname()[1])
