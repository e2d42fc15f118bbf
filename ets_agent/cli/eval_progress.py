"""The progress bar of an evaluation on stderr."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ets_agent.evaluation import ItemRecord


class EvalProgress:
    """Counts problems as they are done.

    Args:
        enabled: False makes every method do nothing.
        total: Number of problems.
        title: What stands before the bar.
    """

    def __init__(self, *, enabled: bool, total: int, title: str) -> None:
        """Prepare the bar; entering it starts the drawing."""
        self._correct = 0
        self._done = 0
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True, force_terminal=sys.stderr.isatty()),
            redirect_stdout=False,
            disable=not enabled,
        )
        self._task = self._progress.add_task(title, total=total, figures="")

    def __enter__(self) -> Self:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing and give the cursor back; the last picture stays."""
        self._progress.stop()

    def advance(self, record: ItemRecord) -> None:
        """Count one more problem."""
        self._done += 1
        self._correct += record.correct
        self._progress.update(self._task, advance=1, figures=f"{self._correct / self._done:.1%} correct")
