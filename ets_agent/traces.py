"""Runs as files: JSON lines that are written while a run goes on and are readable wherever it stops.

The first line is a header: ``{"type": "run", "format": 1, "trace_id": …, "created": …, "prompt": …, "reward": …}``.
Every further line is an event of `ets_agent.results`, as `ETS.stream` yields it; only the result in the last one,
``finished``, comes without its steps, because they stand above, and with its confidence. `read_trace` puts them back.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json

from backends import Prompt
from ets_agent.confidence import confidence
from ets_agent.results import (
    BlockCommitted,
    CandidatesWeighed,
    Event,
    Finished,
    Result,
    StepStarted,
    StepTrace,
    Warned,
)

FORMAT: Final = 1
"""Number of the file format; a version that cannot be read as this one is gets another."""


class TraceError(Exception):
    """A trace cannot be written or read; the message names the file and says why."""


class _End(Finished):
    """The last line: what agents are told of a run, too, for those who read the file and not the library."""

    confidence: float | None = None


_Line = Annotated[StepStarted | CandidatesWeighed | BlockCommitted | Warned | _End, Field(discriminator="type")]
_EVENTS: TypeAdapter[_Line] = TypeAdapter(_Line)


class _Header(BaseModel):
    """The first line."""

    model_config = ConfigDict(frozen=True)

    type: Literal["run"] = "run"
    format: Literal[1] = FORMAT
    trace_id: str
    created: AwareDatetime
    prompt: str | list[dict[str, str]]
    reward: str | None = None


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a file tells of a run.

    Attributes:
        trace_id: Identifies the run.
        created: When the file was begun.
        prompt: What was asked: text, or chat messages.
        reward: Name of the reward, where the writer knew it.
        steps: The steps that were weighed.
        warnings: What went wrong on the way without ending the run.
        result: What the run returned; None where the file ends before the run did.
        step: Number of the last step that began; 0 for none.
        num_steps: Steps at most; None where it is not known.
    """

    trace_id: str
    created: datetime
    prompt: str | list[dict[str, str]]
    reward: str | None
    steps: tuple[StepTrace, ...]
    warnings: tuple[str, ...]
    result: Result | None
    step: int
    num_steps: int | None

    @property
    def finished(self) -> bool:
        """Whether the run came to its end, be it by a deadline, while the file was written."""
        return self.result is not None

    @property
    def confidence(self) -> float | None:
        """The share of weight behind the answer, as `GuidedAnswer.confidence` tells it; None without a result."""
        return None if self.result is None else confidence(self.result)


class TraceWriter:
    """Writes one run to a new file, event by event; a context manager.

        with TraceWriter("run.jsonl", prompt=prompt) as writer:
            async for event in ets.stream(prompt):
                writer.write(event)

    Every line reaches the operating system before `write` returns, so a process that is killed leaves all of it. The
    file is for its owner's eyes alone (mode 0600), because prompts are private. No file is ever overwritten. Where an
    exception ends the run before its first event, there is nothing to tell, and the file is removed.

    Args:
        path: The file; its folder must exist.
        prompt: What the run was asked.
        trace_id: Identifies the run; by default it is drawn.
        reward: Name of the reward, for whoever reads the trace.

    Raises:
        TraceError: The file exists already, or cannot be made.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, prompt: Prompt, trace_id: str | None = None, reward: str | None = None
    ) -> None:
        """Make the file and write its header."""
        self.path = Path(path)
        self.trace_id = secrets.token_hex(8) if trace_id is None else trace_id
        header = _Header(
            trace_id=_unicode(self.trace_id),
            created=datetime.now(UTC),
            prompt=_plain(prompt),
            reward=_unicode(reward),
        )
        check_new(self.path)
        try:
            # Exclusive, so that of two runs that are given one name, one is refused.
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        except OSError as error:
            raise TraceError(_unwritable(self.path, error)) from error
        self._file = open(descriptor, "wb")  # noqa: SIM115 - closed by `close`
        self._events = 0
        try:
            self._line(header.model_dump_json())
        except TraceError:
            self._discard()
            raise

    def write(self, event: Event) -> None:
        """Append an event.

        Raises:
            TraceError: It cannot be written, for example because the disk is full; what is written so far stays
                readable.
        """
        exclude: Any = None
        if isinstance(event, Finished):
            event = _End(result=event.result, confidence=confidence(event.result))
            exclude = {"result": {"steps"}}
        try:
            line = event.model_dump_json(exclude=exclude)
        except PydanticSerializationError:
            # Servers send halves of surrogate pairs, which no file in UTF-8 can hold.
            event = type(event).model_validate(_unicode(event.model_dump()))
            line = event.model_dump_json(exclude=exclude)
        self._line(line)
        self._events += 1

    def close(self) -> None:
        """Close the file; harmless when called twice."""
        with suppress(OSError):  # The rest of a line that could not be written, of which `write` has told.
            self._file.close()

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        if kind is not None and self._events == 0:
            self._discard()
        else:
            self.close()

    def _line(self, text: str) -> None:
        try:
            self._file.write(text.encode() + b"\n")
            self._file.flush()
        except (OSError, ValueError) as error:  # A closed file raises the latter.
            raise TraceError(_unwritable(self.path, error)) from error

    def _discard(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)


def save_trace(
    path: str | os.PathLike[str],
    prompt: Prompt,
    result: Result,
    *,
    trace_id: str | None = None,
    reward: str | None = None,
) -> None:
    """Write a run that is over to a new file, as `TraceWriter` would have, but for the events that add nothing.

    Args:
        path: The file; its folder must exist.
        prompt: What the run was asked.
        result: What it returned.
        trace_id: Identifies the run; by default it is drawn.
        reward: Name of the reward.

    Raises:
        TraceError: The file exists already, or cannot be written.
    """
    with TraceWriter(path, prompt=prompt, trace_id=trace_id, reward=reward) as writer:
        for step in result.steps:
            writer.write(CandidatesWeighed(trace=step))
        writer.write(Finished(result=result))


def check_new(path: str | os.PathLike[str]) -> None:
    """Refuse a name under which no new trace can be made, before a run has cost anything.

    Raises:
        TraceError: There is a file already, or its folder is missing or not for writing.
    """
    path = Path(path)
    if os.path.lexists(path):
        raise TraceError(f"{path} exists already; give the trace another name, or remove the file first")
    if not path.parent.is_dir():
        raise TraceError(f"cannot write the trace {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise TraceError(f"cannot write the trace {path}: Permission denied")


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Return what a file tells of a run; a last line that was not written to its end is ignored.

    Raises:
        TraceError: The file cannot be read, is no trace, is of another format or is damaged.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if file.peek(1)[:1] not in (b"", b"{"):  # Before a line is read, which other files may not have.
                raise TraceError(f"{path} is no trace: it does not begin with a trace's header")
            header = _header(path, file.readline())
            reader = _Reader(path)
            for number, line in enumerate(file, 2):
                reader.read(number, line)
    except OSError as error:
        raise TraceError(f"cannot read the trace {path}: {error.strerror or error}") from error
    steps, result = tuple(reader.steps), reader.result
    return Trace(
        trace_id=header.trace_id,
        created=header.created,
        prompt=header.prompt,
        reward=header.reward,
        steps=steps,
        warnings=tuple(reader.warnings if result is None else result.warnings),
        result=result,
        step=max([reader.step, *(step.step for step in steps)]),
        num_steps=reader.num_steps if result is None else len(result.config.blocks),
    )


class _Reader:
    """Collects what the lines after the header say."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: list[StepTrace] = []
        self.warnings: list[str] = []
        self.result: Result | None = None
        self.step = 0
        self.num_steps: int | None = None

    def read(self, number: int, line: bytes) -> None:
        if not line.strip():
            return
        if self.result is not None:
            raise TraceError(f"{self.path} is no trace of one run: line {number} stands after the run's end")
        try:
            event = self._event(line)
        except ValueError as error:
            if not line.endswith(b"\n"):
                return
            raise TraceError(f"{self.path} is damaged: line {number} is no event of a run ({_first(error)})") from error
        match event:
            case StepStarted():
                self.step, self.num_steps = event.step, event.num_steps
            case CandidatesWeighed():
                self.steps.append(event.trace)
            case Warned():
                self.warnings.append(event.message)
            case Finished():
                self.result = event.result
            case _:  # A committed block is the chosen candidate once more.
                pass

    def _event(self, line: bytes) -> Event:
        value = from_json(line)
        if isinstance(value, dict) and value.get("type") == "finished" and isinstance(value.get("result"), dict):
            value["result"]["steps"] = self.steps
        event = _EVENTS.validate_python(value)
        if isinstance(event, CandidatesWeighed):
            _check(event.trace)
        return event


def _check(step: StepTrace) -> None:
    """Refuse a step whose lists do not belong together, which the types alone do not tell."""
    count = len(step.candidates)
    lists = (step.finished, step.log_energies, step.log_energy_errors, step.weights, step.rollouts)
    if any(len(values) != count for values in lists) or len(step.chains) not in (0, count):
        raise ValueError("its lists are of different lengths")
    if not all(0 <= place < count for place in (step.chosen, *step.kept)):
        raise ValueError("a candidate was chosen that it does not list")


def _header(path: Path, line: bytes) -> _Header:
    if not line.strip():
        raise TraceError(f"{path} is empty; a trace has at least a header")
    try:
        value = from_json(line)
    except ValueError as error:
        if not line.endswith(b"\n"):
            raise TraceError(f"{path} is no trace: it ends within its first line") from error
        raise TraceError(f"{path} is no trace: its first line is no JSON object") from error
    if not isinstance(value, dict) or value.get("type") != "run":
        raise TraceError(f"{path} is no trace: its first line is no header of a run")
    if value.get("format") != FORMAT:
        raise TraceError(f"{path} is a trace of format {value.get('format')!r}; this version reads format {FORMAT}")
    try:
        return _Header.model_validate(value)
    except ValidationError as error:
        raise TraceError(f"{path} is damaged: its header is not as it should be ({_first(error)})") from error


def _first(error: Exception) -> str:
    """Return the first complaint about a line, in one line."""
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        return f"{where}: {problem['msg']}" if where else problem["msg"]
    return str(error)


def _unwritable(path: Path, error: Exception) -> str:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return f"cannot write the trace {path}: {reason}"


def _plain(prompt: Prompt) -> Any:
    """Return a prompt as text, or as messages of text."""
    if isinstance(prompt, str):
        return _unicode(prompt)
    return [{str(key): _unicode(str(value)) for key, value in message.items()} for message in prompt]


def _unicode(value: Any) -> Any:
    """Return a value with every half of a surrogate pair in its texts replaced, since that is no character."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {key: _unicode(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_unicode(inner) for inner in value]
    return value
