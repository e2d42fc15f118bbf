"""A model that is loaded when it is first needed and used in a thread of its own, never on the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Model = TypeVar("Model")
Found = TypeVar("Found")


class ModelThread(Generic[Model]):
    """Runs one piece of work after the other on one model; calls may come from any event loop.

    Args:
        load: Loads the model, in the thread.
        name: The thread's name.
    """

    def __init__(self, load: Callable[[], Model], *, name: str) -> None:
        """Start and load nothing yet."""
        self._load = load
        self._name = name
        self._lock = threading.Lock()
        self._place: _Place[Model] | None = None

    async def run(self, work: Callable[[Model], Found]) -> Found:
        """Return what the work returns; if the call is cancelled, work under way goes on without anybody waiting.

        Raises:
            Exception: What loading or the work raises. Loading is tried again by the next call.
        """
        with self._lock:
            if self._place is None:
                self._place = _Place(self._load, self._name)
            future = self._place.executor.submit(self._place.do, work)
        return await asyncio.wrap_future(future)

    async def aclose(self) -> None:
        """Wait for work under way, then free the model; harmless when called twice. Another call loads it again."""
        with self._lock:
            place, self._place = self._place, None
        if place is not None:
            await asyncio.to_thread(place.executor.shutdown)


class _Place(Generic[Model]):
    """A thread, and the model in it once it is loaded."""

    def __init__(self, load: Callable[[], Model], name: str) -> None:
        self.executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self.model: Model | None = None
        self._load = load

    def do(self, work: Callable[[Model], Found]) -> Found:
        if self.model is None:
            self.model = self._load()
        return work(self.model)
