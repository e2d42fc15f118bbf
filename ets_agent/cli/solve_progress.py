"""The picture of a run on stderr: the step, its candidates with their weights, and the response so far."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from ets_agent.cli.output import printable
from ets_agent.energy import Fallback
from ets_agent.results import (
    BlockCommitted,
    CandidatesWeighed,
    Event,
    Finished,
    Result,
    StepStarted,
    StepTrace,
)

_MOST_ROWS = 10
_MOST_TEXT = 600
_BAR_WIDTH = 16

_FALLBACKS: dict[Fallback, str] = {
    "equal_rewards": "all rewards equal, so drawn from the model alone",
    "zero_energies": "all energies zero, so drawn from the model alone",
    "no_verdict": "no verdict on any rollout, so drawn from the model alone",
}


class SolveProgress:
    """Shows the events of one run: repainted in place on a terminal, one table per step elsewhere.

    Args:
        enabled: False makes every method do nothing.
        console: Where to draw; stderr by default.
    """

    def __init__(self, *, enabled: bool, console: Console | None = None) -> None:
        """Prepare the display; entering it starts the drawing."""
        # Other programs' wish for colors (FORCE_COLOR) must not bring cursor movements into a file.
        self._console = console or Console(stderr=True, force_terminal=sys.stderr.isatty())
        self._enabled = enabled
        self._live: Live | None = None
        self._status = ""
        self._text = ""
        self._trace: StepTrace | None = None
        self._num_steps = 0

    def __enter__(self) -> Self:
        """Start drawing."""
        if self._enabled and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, redirect_stdout=False, refresh_per_second=8)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing and give the cursor back; the last picture stays."""
        if self._live is not None:
            if error is not None:
                self._live.update(self._picture())
            self._live.stop()
            self._live = None

    def note(self, status: str) -> None:
        """Say what is going on."""
        self._status = status
        self._repaint()

    def show(self, event: Event) -> None:
        """Show an event of the run."""
        match event:
            case StepStarted():
                self._num_steps = event.num_steps
                self.note(f"step {event.step}/{event.num_steps}: drawing candidates and rollouts")
            case CandidatesWeighed():
                self._trace = event.trace
                self._repaint()
                if self._enabled and self._live is None:
                    self._console.print(_step(event.trace, self._num_steps))
            case BlockCommitted():
                self._text = event.text
                self._repaint()
            case Finished():
                self._text = event.result.text
                self._finish(event.result)
            case _:  # warnings are printed when the picture is no longer repainted
                pass

    def _finish(self, result: Result) -> None:
        self._status = ""
        summary = Text(printable(summarize(result)), style="dim")
        if self._live is not None:
            self._live.update(self._picture(summary))
        elif self._enabled:
            self._console.print(summary)

    def _repaint(self) -> None:
        if self._live is not None:
            spinner = Spinner("dots", Text(printable(self._status))) if self._status else None
            self._live.update(self._picture(spinner))

    def _picture(self, last: RenderableType | None = None) -> RenderableType:
        parts: list[RenderableType] = []
        if self._trace is not None:
            parts.append(_step(self._trace, self._num_steps))
        if self._text:
            parts.append(Padding(Text(_tail(printable(self._text))), (1, 0, 1, 2)))
        if last is not None:
            parts.append(last)
        return Group(*parts)


def summarize(result: Result) -> str:
    """Return one line about a run: steps, tokens, seconds, proposal, seed, and how it ended if not by itself."""
    count, usage = len(result.steps), result.usage
    parts = [f"{count} step{'s' * (count != 1)}", f"{usage.total_tokens} tokens"]
    if usage.saved_tokens > 0:
        parts.append(f"{usage.saved_tokens} saved")
    parts.append(f"{usage.seconds:.1f} s")
    if result.proposal is not None:
        parts.append(f"rollouts by {result.proposal}")
    parts.append(f"seed {result.seed}")
    if result.cut_short:
        parts.append(f"cut short by the {result.finish_reason}")
    elif result.finish_reason == "length":
        parts.append("ended by max_tokens")
    return ", ".join(parts)


def _step(trace: StepTrace, num_steps: int) -> RenderableType:
    """Draw the candidates of one step in their own order; where they are many, those in use and the heaviest."""
    heading = f"step {trace.step}/{num_steps}, effective sample size {trace.ess:.1f} of {len(trace.weights)}"
    if trace.dropped:
        heading += f", {trace.dropped} rollouts without a verdict"
    if trace.fallback is not None:
        heading += f"\n{_FALLBACKS[trace.fallback]}"
    if trace.diagnostics.verdict is not None:
        heading += f"\n{trace.diagnostics.verdict}"

    kept = set(trace.kept)
    by_rank = sorted(
        range(len(trace.weights)), key=lambda index: (index != trace.chosen, index not in kept, -trace.weights[index])
    )
    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column(justify="right")
    table.add_column(width=_BAR_WIDTH)
    table.add_column(justify="right")
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for index in sorted(by_rank[:_MOST_ROWS]):
        chosen = index == trace.chosen
        weight = trace.weights[index]
        table.add_row(
            _mark(chosen=chosen, kept=index in kept),
            Text(str(index + 1), style="dim"),
            ProgressBar(total=1.0, completed=weight, width=_BAR_WIDTH),
            Text(f"{100 * weight:.1f} %"),
            _block(trace.candidates[index], finished=trace.finished[index], chosen=chosen),
        )
    hidden = len(trace.weights) - _MOST_ROWS
    more = [Text(f"  and {hidden} more", style="dim")] if hidden > 0 else []
    return Group(Text(heading, style="bold"), table, *more)


def _mark(*, chosen: bool, kept: bool) -> Text:
    """Return the mark of a candidate: the chosen one's, or that of one from which another chain goes on."""
    if chosen:
        return Text(">", style="bold green")
    return Text("+" if kept else " ", style="dim")


def _block(text: str, *, finished: bool, chosen: bool) -> Text:
    """Return a candidate's text on one line, with a mark where the response ends with it."""
    line = Text(printable(text.replace("\n", "⏎").replace("\t", " ")), style="bold" if chosen else "")
    return line.append(" (end)", style="dim") if finished else line


def _tail(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else f"…{text[-_MOST_TEXT:]}"
