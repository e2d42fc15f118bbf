"""Events of a run as progress that always rises, with a message in words."""

from __future__ import annotations

from dataclasses import dataclass

from ets_agent.results import BlockCommitted, CandidatesWeighed, Event, StepStarted, Warned

_STARTED = 0.05
"""Share of a step that counts as done when it begins, so that its beginning is more than the end of the one before."""
_WEIGHED = 0.9
"""Share of a step that counts as done when its candidates are weighed."""
_SLOWNESS = 10
"""So many signs of life take progress half the way to the next event; no number of them takes it there."""
_MOST_TEXT = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What a caller is told while it waits.

    Attributes:
        progress: Steps done, with the share of the one under way; more than in any note before.
        total: Steps at most; None until that is known.
        message: What goes on.
    """

    progress: float
    total: int | None
    message: str


class Progress:
    """The progress of one run. Every note is further than the one before, as the protocol has it."""

    def __init__(self) -> None:
        """Nothing was heard of the run yet."""
        self._total: int | None = None
        self._at, self._until = 0.0, _STARTED
        self._beats = 0
        self._doing = "waiting to begin"

    def of(self, event: Event) -> Note | None:
        """Return what to say about an event; None for the last one, which the answer itself follows."""
        match event:
            case StepStarted():
                self._total = event.num_steps
                done = event.step - 1
                self._doing = f"step {event.step} of {event.num_steps}: drawing and judging candidates"
                return self._reached(done + _STARTED, done + _WEIGHED, self._doing)
            case CandidatesWeighed(trace=trace):
                count, of = len(trace.weights), f"step {trace.step} of {self._total}"
                message = f"{of}: weighed {count} candidates, effectively {trace.ess:.1f}"
                return self._reached(trace.step - 1 + _WEIGHED, trace.step, message)
            case BlockCommitted():
                message = f"step {event.step} of {self._total}: chose {_quoted(event.delta)}"
                return self._reached(event.step, event.step + _STARTED, message)
            case Warned():
                return self._further(event.message)
        return None

    def beat(self, seconds: float) -> Note | None:
        """Return a sign of life for a run of which nothing was heard meanwhile; None where it is all but over.

        Args:
            seconds: For how long the run has been under way.
        """
        return self._further(f"{self._doing} ({seconds:.0f} s)")

    def _reached(self, progress: float, until: float, message: str) -> Note:
        self._at, self._until, self._beats = progress, until, 0
        return Note(progress=progress, total=self._total, message=message)

    def _further(self, message: str) -> Note | None:
        """Move on a little towards the next event, whenever that will be."""
        if self._total is not None and self._at >= self._total:
            return None
        self._beats += 1
        progress = self._at + (self._until - self._at) * self._beats / (self._beats + _SLOWNESS)
        return Note(progress=progress, total=self._total, message=message)


def _quoted(text: str) -> str:
    line = " ".join(text.split())
    return f"“{line}”" if len(line) <= _MOST_TEXT else f"“{line[:_MOST_TEXT]}…”"
