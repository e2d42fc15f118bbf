from __future__ import annotations

import gc
from collections.abc import Callable
from typing import cast

import pytest

from backends import Backend, BackendClosedError, BackendContext, SamplingParams, State
from backends.enumerable import EnumerableBackend
from backends.limits import Limited, Limiter
from backends.metering import Metered, TokenBudget
from backends.pool import Pool
from backends.retries import Retrying, RetryPolicy
from backends.scripted import ScriptedBackend
from backends.telemetry import Traced
from backends.wrapper import BackendWrapper, StateNotes, layers

from .conformance import CHECKS, Check
from .test_conformance import SCRIPT

Wrap = Callable[[Backend], Backend]


def _stack(backend: Backend) -> Backend:
    return Traced(Metered(Retrying(Limited(BackendWrapper(backend), 2)), 10**9))


def _stack_inside_out(backend: Backend) -> Backend:
    return Limited(Retrying(Metered(Traced(backend), TokenBudget(10**9)), RetryPolicy(attempts=1)), Limiter(1))


WRAPPERS: dict[str, Wrap] = {
    "wrapper": BackendWrapper,
    "retrying": Retrying,
    "limited": lambda backend: Limited(backend, 1),
    "metered": Metered,
    "metered with a budget": lambda backend: Metered(backend, 10**9),
    "traced": Traced,
    "all": _stack,
    "all, inside out": _stack_inside_out,
}

wrappers = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())


@wrappers
@pytest.mark.parametrize("law", CHECKS, ids=lambda law: law.__name__)
async def test_a_wrapped_backend_obeys(law: Check, wrap: Wrap) -> None:
    await law(wrap(ScriptedBackend(SCRIPT)), "a question")


@wrappers
@pytest.mark.parametrize("diffusion", [False, True], ids=["left to right", "diffusion"])
@pytest.mark.parametrize("law", CHECKS, ids=lambda law: law.__name__)
async def test_a_wrapped_backend_that_shares_tokens_obeys(law: Check, wrap: Wrap, diffusion: bool) -> None:
    await law(wrap(EnumerableBackend.random(1, letters="abcd", diffusion=diffusion)), "a question")


@wrappers
def test_a_wrapped_backend_is_a_backend(wrap: Wrap) -> None:
    backend = EnumerableBackend.random(1, letters="abcd")
    wrapped = wrap(backend)
    assert isinstance(wrapped, Backend)
    assert wrapped.name == backend.name
    assert wrapped.capabilities == backend.capabilities
    assert wrapped.tokenization == backend.tokenization is not None


def test_a_wrapper_passes_on_all_that_the_contract_has() -> None:
    contract = {name for name in vars(Backend) if not name.startswith("_") or name in ("__aenter__", "__aexit__")}
    assert contract >= {"name", "begin", "adopt", "__aexit__"}
    assert contract <= set(vars(BackendWrapper))


@wrappers
async def test_states_go_through_as_they_are(wrap: Wrap) -> None:
    backend = ScriptedBackend(["one two three", "four five"])
    wrapped = wrap(backend)
    state = await wrapped.begin("a question", max_tokens=5, params=SamplingParams())
    for seed in range(8):
        expected = await backend.extend(state, 2, tokens=1, seed=seed)
        assert await wrapped.extend(state, 2, tokens=1, seed=seed) == expected
    (bare,) = await backend.extend(state, 1, tokens=1, seed=0)
    (state,) = await wrapped.extend(state, 1, tokens=1, seed=0)
    assert type(state) is type(bare)
    assert await wrapped.rollout([bare], 2, seed=1) == await backend.rollout([state], 2, seed=1)


@wrappers
async def test_states_of_another_backend_can_be_adopted(wrap: Wrap) -> None:
    inner = EnumerableBackend.random(1, letters="abcd")
    wrapped = wrap(inner)
    start = await wrapped.begin("a question", max_tokens=5, params=SamplingParams())
    drawn = await inner.extend(start, 3, tokens=2, seed=0)
    foreign = [State(text=s.text, num_tokens=s.num_tokens, token_ids=s.token_ids) for s in drawn if not s.finished]
    assert foreign
    adopted = wrapped.adopt(start, foreign)
    assert adopted == [state for state in drawn if not state.finished]
    assert len(await wrapped.rollout(adopted, 2, seed=1)) == len(adopted)


class _Doors(BackendContext):
    """Notes who comes and goes."""

    name = "doors"

    def __init__(self) -> None:
        self.log: list[str] = []

    async def aclose(self) -> None:
        self.log.append("closed")

    async def __aenter__(self) -> _Doors:
        self.log.append("entered")
        return self


@wrappers
async def test_entering_and_leaving_a_wrapper_enters_and_leaves_the_backend(wrap: Wrap) -> None:
    doors = _Doors()
    wrapped = wrap(cast("Backend", doors))
    async with wrapped as entered:
        assert entered is wrapped
        assert doors.log == ["entered"]
    assert doors.log == ["entered", "closed"]
    await wrapped.aclose()
    assert doors.log == ["entered", "closed", "closed"]


@wrappers
async def test_errors_come_through_as_they_are(wrap: Wrap) -> None:
    backend = ScriptedBackend(["one"])
    await backend.aclose()
    with pytest.raises(BackendClosedError, match=r"^the scripted backend is closed$"):
        await wrap(backend).begin("a question", max_tokens=5, params=SamplingParams())


def test_a_wrapper_shows_what_it_wraps() -> None:
    wrapped = Metered(Limited(EnumerableBackend.random(1, letters="abcd"), 1))
    assert repr(wrapped).startswith("Metered(Limited(<backends.enumerable.EnumerableBackend")


def test_the_layers_of_a_backend_are_all_that_its_calls_may_go_through() -> None:
    one, two = ScriptedBackend(["one"]), ScriptedBackend(["one"])
    limited = Limited(two, 1)
    pool = Pool([one, limited])
    traced = Traced(pool)
    assert list(layers(traced)) == [traced, pool, one, limited, two]


def test_notes_live_as_long_as_their_states() -> None:
    notes: StateNotes[int] = StateNotes()
    states = [State(text=str(number)) for number in range(100)]
    for number, state in enumerate(states):
        notes.put([state], number)
    assert [notes.get(state) for state in states] == list(range(100))
    del state, states[50:]
    gc.collect()
    assert len(notes) == 50
    assert [notes.get(state) for state in states] == list(range(50))
    notes.put(states, -1)
    assert {notes.get(state) for state in states} == {-1}
    states.clear()
    gc.collect()
    assert len(notes) == 0


def test_equal_states_may_have_different_notes() -> None:
    notes: StateNotes[int] = StateNotes()
    one, other, unknown = State(text="a"), State(text="a"), State(text="a")
    notes.put([one], 1)
    notes.put([other], 2)
    assert one == other == unknown
    assert (notes.get(one), notes.get(other), notes.get(unknown)) == (1, 2, None)
    del one
    gc.collect()
    assert notes.get(other) == 2


def test_a_new_state_has_no_note_of_an_old_one() -> None:
    """Objects get ids of others that are gone."""
    notes: StateNotes[int] = StateNotes()
    for _ in range(1000):
        state = State(text="a")
        assert notes.get(state) is None
        notes.put([state], 1)
        del state
