"""The progress bar of an evaluation on stderr."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ets_agent.cli.output import printable
from ets_agent.evaluation import ItemRecord


class EvalProgress:
    """Counts problems as they are done, those of all methods together.

    Args:
        enabled: False makes every method do nothing.
        problems: Number of problems.
        methods: Names of the methods that answer them.
        title: What stands before the bar.
    """

    def __init__(self, *, enabled: bool, problems: int, methods: Sequence[str], title: str) -> None:
        """Prepare the bar; entering it starts the drawing."""
        self._methods = methods
        self._correct: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
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
        self._task = self._progress.add_task(title, total=problems * len(methods), figures="")

    def __enter__(self) -> Self:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing and give the cursor back; the last picture stays."""
        self._progress.stop()

    def note(self, status: str) -> None:
        """Say what is going on before there are figures."""
        self._progress.update(self._task, figures=printable(status))

    def advance(self, record: ItemRecord) -> None:
        """Count one more problem."""
        self._done[record.method] += 1
        self._correct[record.method] += record.correct
        rates = {method: f"{self._correct[method] / done:.1%}" for method, done in self._done.items()}
        if len(self._methods) > 1:
            figures = ", ".join(f"{method} {rate}" for method, rate in rates.items())
        else:
            figures = f"{rates[record.method]} correct"
        self._progress.update(self._task, advance=1, figures=figures)
