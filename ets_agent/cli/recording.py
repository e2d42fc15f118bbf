"""``--trace FILE``: a run is written to a file while it goes on."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from backends import Prompt
from ets_agent.results import Event
from ets_agent.traces import TraceError, TraceWriter


class Recorder:
    """Writes a run's events, if that is wanted. A disk that fills up meanwhile costs the trace, and not the answer.

    Args:
        path: The file; None makes every method do nothing.
        prompt: What the run is asked.
        reward: Name of the reward.
    """

    def __init__(self, path: Path | None, prompt: Prompt, *, reward: str | None) -> None:
        """Prepare; entering makes the file."""
        self.problem: str | None = None
        """Why the trace is not complete."""
        self._path, self._prompt, self._reward = path, prompt, reward
        self._writer: TraceWriter | None = None
        self._open = ExitStack()

    def write(self, event: Event) -> None:
        """Append an event, unless one could not be written before."""
        if self._writer is None or self.problem is not None:
            return
        try:
            self._writer.write(event)
        except TraceError as error:
            self.problem = f"{error}; what is in it ends before the run did"

    def __enter__(self) -> Self:
        """Make the file.

        Raises:
            TraceError: That cannot be done.
        """
        if self._path is not None:
            writer = TraceWriter(self._path, prompt=self._prompt, reward=self._reward)
            self._writer = self._open.enter_context(writer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._open.__exit__(kind, error, trace)
