from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from backends.scripted import ScriptedBackend
from ets_agent import ETS, Event
from ets_agent.mcp_server._progress import Note, Progress
from ets_agent.results import Finished, StepStarted, Warned
from tests.mcp_server.watched_ets import RESPONSES


async def events_of_a_run() -> list[Event]:
    ets = ETS(ScriptedBackend(RESPONSES), num_candidates=3, num_rollouts=2, num_steps=3, max_tokens=6, seed=1)
    return [event async for event in ets.stream("How many?")]


def rises(notes: list[Note | None]) -> bool:
    numbers = [note.progress for note in notes if note is not None]
    return all(before < after for before, after in itertools.pairwise(numbers))


async def test_each_event_is_told_but_the_last() -> None:
    progress = Progress()
    events = await events_of_a_run()
    notes = [progress.of(event) for event in events]
    assert [note is None for note in notes] == [isinstance(event, Finished) for event in events]
    assert rises(notes)
    assert notes[-2] is not None
    assert (notes[-2].progress, notes[-2].total) == (3, 3)
    assert all(note.message.startswith("step ") for note in notes if note is not None)


@given(beats=st.lists(st.integers(0, 30), min_size=10, max_size=10))
def test_signs_of_life_fit_in_between(beats: list[int]) -> None:
    import asyncio

    progress, notes = Progress(), []
    for event, count in zip(asyncio.run(events_of_a_run()), beats, strict=False):
        notes += [progress.beat(5.0 * beat) for beat in range(count)]
        notes.append(progress.of(event))
    assert rises(notes)
    assert all(note.progress <= 3 for note in notes if note is not None)


def test_a_day_of_signs_of_life_still_rises() -> None:
    progress = Progress()
    notes = [progress.of(StepStarted(step=1, num_steps=1, text=""))]
    notes += [progress.beat(5.0 * beat) for beat in range(20_000)]
    assert rises(notes)
    assert notes[-1] is not None
    assert notes[-1].progress < 0.9


def test_before_the_first_step_the_total_is_not_known() -> None:
    note = Progress().beat(7.0)
    assert note is not None
    assert (note.total, note.message) == (None, "waiting to begin (7 s)")


def test_a_warning_is_passed_on_in_its_own_words() -> None:
    progress = Progress()
    progress.of(StepStarted(step=1, num_steps=2, text=""))
    note = progress.of(Warned(step=1, message="3 of 8 rollouts failed and were left out"))
    assert note is not None
    assert note.message == "3 of 8 rollouts failed and were left out"
