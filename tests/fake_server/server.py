"""Runs the fake server: in a thread of this process, or as a process of its own that can be killed."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import uvicorn
from uvicorn.server import ServerState

from tests.fake_server.app import FakeApp
from tests.fake_server.faults import FaultPlan
from tests.fake_server.models import Model
from tests.fake_server.profiles import ProfileName
from tests.fake_server.records import Records

_PATIENCE = 60.0
"""Seconds that starting and stopping may take; far more than they do, even on a machine that is busy elsewhere."""
_KEEP_ALIVE = 75
"""Seconds that an idle connection stays open; longer than clients keep theirs."""


async def serve(app: FakeApp, listener: socket.socket, stop: asyncio.Event, ready: Callable[[], None]) -> None:
    """Serve until told to stop; then let go of everybody at once.

    uvicorn's protocol is used without its server, which would wait for clients before it closes.
    """
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        log_level="critical",
        timeout_keep_alive=_KEEP_ALIVE,
    )
    config.load()
    state = ServerState()
    state.default_headers = [(b"server", b"uvicorn")]
    protocol: Any = config.http_protocol_class
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config=config, server_state=state, app_state={}), sock=listener, backlog=4096
    )
    ready()
    try:
        await stop.wait()
    finally:
        server.close()
        told: set[asyncio.Task[None]] = set()
        # Again and again: connections that were just being accepted come up while the others go.
        while state.connections or state.tasks:
            for connection in list(state.connections):
                connection.transport.abort()
            for task in state.tasks - told:
                task.cancel()
            told |= state.tasks
            await asyncio.sleep(0)


class FakeServer:
    """A fake server in a thread of this process, with an event loop of its own.

    Args:
        model: What it serves.
        port: Where; 0 finds a free port.
        **options: See `FakeApp`.

    Attributes:
        records: What it was asked.
    """

    def __init__(self, model: Model, *, port: int = 0, profile: ProfileName = "vllm", **options: Any) -> None:
        """Start nothing yet."""
        self.model = model
        self._app = FakeApp(model, profile=profile, **options)
        self._port = port
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """Where it is, without a path."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def base_url(self) -> str:
        """What OpenAI's SDK takes as ``base_url``."""
        return f"{self.url}/v1"

    @property
    def records(self) -> Records:
        """What it was asked."""
        return self._app.records

    @property
    def faults(self) -> FaultPlan | None:
        """What goes wrong on purpose; another plan may take its place at any time."""
        return self._app.faults

    @faults.setter
    def faults(self, plan: FaultPlan | None) -> None:
        self._app.faults = plan

    def wait_idle(self, timeout: float = _PATIENCE) -> None:
        """Block until no request is under way.

        Raises:
            TimeoutError: Some still were after ``timeout`` seconds.
        """
        self.records.wait(lambda records: records.active == 0, timeout)

    def __enter__(self) -> Self:
        """Start the thread; return when connections are accepted."""
        listener = socket.create_server(("127.0.0.1", self._port), backlog=4096)
        self._port = listener.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listener, ready), name="fake-server", daemon=True)
        self._thread.start()
        if not ready.wait(_PATIENCE) or self._loop is None:
            listener.close()
            raise RuntimeError("the fake server did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, whatever is under way; complain about mistakes of the server's own."""
        assert self._loop is not None
        assert self._stop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            raise RuntimeError("the fake server did not stop")
        if self._app.failures and error is None:
            raise RuntimeError("the fake server failed") from self._app.failures[0]

    def _run(self, listener: socket.socket, ready: threading.Event) -> None:
        async def main() -> None:
            self._stop = asyncio.Event()

            def started() -> None:
                self._loop = asyncio.get_running_loop()
                ready.set()

            await serve(self._app, listener, self._stop, started)

        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(main())
        finally:
            ready.set()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's event loop where it is installed."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    return uvloop.new_event_loop
