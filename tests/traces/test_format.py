"""The file of a trace: what is written is read again, whatever it holds and wherever it ends."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from pydantic import ValidationError

from backends.scripted import ScriptedBackend
from ets_agent import ETS, CandidatesWeighed, Finished, GuidedAnswer, Result, StepStarted, Warned
from ets_agent.traces import TraceError, TraceWriter, check_new, read_trace, save_trace
from tests.traces.runs import prompts, result, results, rollout, step

MESSAGES = [{"role": "user", "content": "How many?"}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


@pytest.fixture
def saved(path: Path) -> Path:
    save_trace(path, MESSAGES, result("a b", [step(1, ["a ", "x "], [0.75, 0.25]), step(2, ["b"], [1.0])]))
    return path


def types_of_lines(path: Path) -> list[str]:
    content = path.read_bytes()
    assert content.endswith(b"\n")
    return [json.loads(line)["type"] for line in content.splitlines()]


@given(run=results, prompt=prompts)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_result_is_read_as_it_was_saved(run: Result, prompt: Any, path: Path) -> None:
    path.unlink(missing_ok=True)
    save_trace(path, prompt, run, trace_id="7f", reward="r")
    trace = read_trace(path)
    assert (trace.trace_id, trace.reward, trace.prompt) == ("7f", "r", prompt)
    assert trace.result == run
    assert trace.steps == run.steps
    assert trace.warnings == tuple(run.warnings)
    assert trace.finished


async def test_a_run_is_written_while_it_streams(path: Path) -> None:
    events = []
    async with ETS(ScriptedBackend({"a b c #### 1": 1, "a b d #### 2": 1}), max_tokens=8) as ets:
        with TraceWriter(path, prompt=MESSAGES) as writer:
            async for event in ets.stream(MESSAGES, seed=1):
                writer.write(event)
                events.append(event)
                assert types_of_lines(path) == ["run", *(event.type for event in events)]
    trace = read_trace(path)
    assert isinstance(events[-1], Finished)
    assert trace.result == events[-1].result
    assert trace.steps == tuple(event.trace for event in events if isinstance(event, CandidatesWeighed))
    assert (trace.trace_id, trace.prompt) == (writer.trace_id, MESSAGES)
    assert trace.step == len(trace.steps)
    assert trace.num_steps == 4
    assert trace.created.tzinfo is not None


def test_the_result_in_the_file_does_not_repeat_the_steps(saved: Path) -> None:
    assert types_of_lines(saved) == ["run", "candidates_weighed", "candidates_weighed", "finished"]
    lines = [json.loads(line) for line in saved.read_text().splitlines()]
    assert lines[0].keys() == {"type", "format", "trace_id", "created", "prompt", "reward"}
    assert "steps" not in lines[-1]["result"]


def test_the_file_tells_the_confidence_that_agents_are_told(path: Path) -> None:
    one, two = rollout("a #### 1", share=0.75), rollout("a #### 2", share=0.25)
    run = result("a #### 1", [step(1, ["a", "b"], [0.6, 0.4], rollouts=((one, two), (two,)))])
    save_trace(path, MESSAGES, run)
    told = GuidedAnswer.of(run, trace_id="7f").confidence
    assert json.loads(path.read_text().splitlines()[-1])["confidence"] == told == pytest.approx(0.45)
    assert read_trace(path).confidence == told


def test_a_file_without_a_confidence_is_read_and_has_one(saved: Path) -> None:
    before = read_trace(saved)
    *lines, last = saved.read_text().splitlines()
    end = json.loads(last)
    assert end.pop("confidence") == before.confidence is not None
    saved.write_text("\n".join([*lines, json.dumps(end), ""]))
    assert read_trace(saved) == before
    assert read_trace(saved).confidence == before.confidence
    saved.write_text("\n".join(lines))
    assert read_trace(saved).confidence is None


def test_a_beginning_of_a_file_is_a_run_that_is_not_finished(path: Path, tmp_path: Path) -> None:
    run = result("a b", [step(1, ["a ", "x "], [0.75, 0.25]), step(2, ["b"], [1.0])])
    with TraceWriter(path, prompt="p") as writer:
        for number, trace in enumerate(run.steps, 1):
            writer.write(StepStarted(step=number, num_steps=5, text=""))
            writer.write(Warned(step=number, message=f"warning {number}"))
            writer.write(CandidatesWeighed(trace=trace))
        writer.write(Finished(result=run))
    whole = path.read_bytes()
    part = tmp_path / "part.jsonl"
    header = whole.index(b"\n")
    for end in range(header, len(whole) - 1):
        part.write_bytes(whole[:end])
        trace = read_trace(part)
        assert not trace.finished
        assert trace.steps == run.steps[: len(trace.steps)]
    assert trace.steps == run.steps
    assert (trace.step, trace.num_steps, trace.warnings) == (2, 5, ("warning 1", "warning 2"))
    part.write_bytes(whole[:-1])  # An editor may have taken the last newline.
    assert read_trace(part).finished


def test_infinities_are_legal_json(path: Path) -> None:
    run = result("a", [step(1, ["a", "b"], [1.0, 0.0], rollouts=((rollout("a"),), (rollout("b", reward=-math.inf),)))])
    save_trace(path, "p", run)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    assert read_trace(path).result == run


@pytest.mark.parametrize("number", ["NaN", '"NaN"'])
def test_a_number_that_is_none_is_read(saved: Path, number: str) -> None:
    saved.write_text(saved.read_text().replace('"rollout_ess":6.5', f'"rollout_ess":{number}'))
    assert math.isnan(read_trace(saved).steps[0].diagnostics.rollout_ess)


def test_halves_of_surrogate_pairs_are_replaced(path: Path) -> None:
    trace = step(1, ["a"], [1.0]).model_copy(update={"candidates": ("a\ud83d",), "log_energies": (-math.inf,)})
    whole = trace.model_copy(update={"rollouts": ((rollout("\ud83d\ude00 \u2028"),),)})
    with TraceWriter(path, prompt=[{"role": "user", "content": "\udc00"}]) as writer:
        writer.write(CandidatesWeighed(trace=whole))
    read = read_trace(path)
    assert read.prompt == [{"role": "user", "content": "�"}]
    assert read.steps[0].candidates == ("a�",)
    assert read.steps[0].log_energies == (-math.inf,)
    assert read.steps[0].rollouts[0][0].text == "😀 \u2028"


def test_only_the_owner_may_read_the_file(saved: Path) -> None:
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600


def test_no_file_is_overwritten(saved: Path, tmp_path: Path) -> None:
    before = saved.read_bytes()
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "nowhere")
    for taken in (saved, link, tmp_path):
        for make in (lambda: TraceWriter(taken, prompt="p"), lambda: check_new(taken)):  # noqa: B023
            with pytest.raises(TraceError, match="exists already; give the trace another name"):
                make()
    assert saved.read_bytes() == before
    assert not (tmp_path / "nowhere").exists()


def test_of_two_writers_of_one_file_one_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ets_agent.traces.check_new", lambda path: None)
    with TraceWriter(path, prompt="p"), pytest.raises(TraceError, match="File exists"):
        TraceWriter(path, prompt="p")


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"cannot write the trace .*: there is no folder .*nowhere"):
        save_trace(tmp_path / "nowhere" / "run.jsonl", "p", result("a", []))


def test_a_folder_that_is_not_for_writing_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(TraceError, match="Permission denied"):
        check_new(path)


def test_a_run_that_fails_before_its_first_event_leaves_no_file(path: Path) -> None:
    with pytest.raises(RuntimeError), TraceWriter(path, prompt="p"):
        raise RuntimeError
    assert not path.exists()


def fail_after(writer: TraceWriter) -> RuntimeError:
    writer.write(StepStarted(step=1, num_steps=2, text=""))
    return RuntimeError()


def test_a_run_that_fails_later_leaves_what_was_written(path: Path) -> None:
    writer = TraceWriter(path, prompt="p")
    with pytest.raises(RuntimeError), writer:
        raise fail_after(writer)
    trace = read_trace(path)
    assert (trace.step, trace.num_steps, trace.steps, trace.finished) == (1, 2, (), False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error(path: Path) -> None:
    with TraceWriter(path, prompt="p") as writer:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, writer._file.fileno())
        os.close(full)
        with pytest.raises(TraceError, match=r"cannot write the trace .*: No space left on device"):
            writer.write(StepStarted(step=1, num_steps=2, text=""))


def test_a_closed_writer_refuses_events(path: Path) -> None:
    with TraceWriter(path, prompt="p") as writer:
        pass
    with pytest.raises(TraceError, match="closed file"):
        writer.write(StepStarted(step=1, num_steps=2, text=""))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n", "does not begin with"),
        (b"\x89PNG\r\n\x1a\n\0\0", "does not begin with a trace's header"),
        (b"\xff\xfe{\0", "does not begin with"),
        (b"hello\n", "does not begin with"),
        (b'{"type": "run", "for', "it ends within its first line"),
        (b"{\xff}\n", "its first line is no JSON object"),
        (b'{"a": 1}\n', "its first line is no header of a run"),
        (b'{"text": "a", "answer": null}', "no header of a run"),
        (b'{"type": "run", "format": 2, "trace_id": "x"}\n', r"a trace of format 2; this version reads format 1"),
        (b'{"type": "run"}\n', "a trace of format None"),
        (b'{"type": "run", "format": 1}\n', "is damaged: its header is not as it should be .trace_id: Field required"),
        (b"{" * 100_000 + b"\n", "its first line is no JSON object"),
    ],
)
def test_what_is_no_trace_is_told(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(TraceError, match=message) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        b"{}\n",
        b"[]\n",
        b'{"type":"nope"}\n',
        b'{"type":"finished"}\n',
        b'{"type":"finished","result":1}\n',
        b'{"type":"warned","step":1,"message":"\\ud800"}\n',
        b"\xff\n",
        b"nonsense\n",
        b"[" * 100_000 + b"\n",
    ],
)
def test_damage_is_told_with_its_line(saved: Path, line: bytes) -> None:
    lines = saved.read_bytes().splitlines(keepends=True)
    saved.write_bytes(b"".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(TraceError, match=r"is damaged: line 3 is no event of a run \(.+\)") as caught:
        read_trace(saved)
    assert "\n" not in str(caught.value)


def test_two_runs_in_one_file_are_an_error(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() * 2)
    with pytest.raises(TraceError, match="no trace of one run: line 5 stands after the run's end"):
        read_trace(saved)


def test_what_cannot_be_read_is_told(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TraceError, match=r"cannot read the trace .*: No such file"):
        read_trace(path)
    with pytest.raises(TraceError, match="Is a directory"):
        read_trace(tmp_path)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(TraceError, match="Permission denied"):
        read_trace(path)


def test_lines_may_be_formatted_in_other_ways(saved: Path) -> None:
    run = read_trace(saved).result
    lines = [json.loads(line) for line in saved.read_text().splitlines()]
    saved.write_text("".join(json.dumps(dict(reversed(line.items()))) + "\r\n\n" for line in lines))
    assert read_trace(saved).result == run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [1.0, 0, 0]}, "its lists are of different lengths"),
        ({"chains": [0]}, "its lists are of different lengths"),
        ({"chosen": 2}, "a candidate was chosen that it does not list"),
        ({"kept": [-1]}, "a candidate was chosen that it does not list"),
    ],
)
def test_a_step_that_contradicts_itself_is_damage(saved: Path, change: dict[str, Any], message: str) -> None:
    lines = [json.loads(line) for line in saved.read_text().splitlines()]
    lines[1]["trace"] |= change
    saved.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(TraceError, match=rf"is damaged: line 2 .*{message}"):
        read_trace(saved)


def test_the_models_refuse_what_a_file_should_not_hold(saved: Path) -> None:
    saved.write_text(saved.read_text().replace('"dropped":0', '"dropped":"many"'))
    with pytest.raises(TraceError, match="dropped") as caught:
        read_trace(saved)
    assert isinstance(caught.value.__cause__, ValidationError)
