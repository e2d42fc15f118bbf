"""Stop strings."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.text import cut, settled

few = st.text(alphabet="ab", max_size=12)
stops = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3).map(tuple)


def test_an_end_that_may_become_a_stop_string_is_held_back() -> None:
    assert settled("so far EN", ("END",)) == "so far "
    assert settled("so far EN", ("END", "far ENOUGH")) == "so "
    assert settled("so far EX", ("END",)) == "so far EX"
    assert settled("", ("END",)) == ""
    assert cut("one END two END", ("END",)) == "one "
    assert cut("one END two", ("two", "END")) == "one "
    assert cut("one", ()) == "one"


@given(few, few, stops)
def test_text_only_grows(before: str, more: str, stop: tuple[str, ...]) -> None:
    if cut(before, stop) != before:
        return  # The response was over by then.
    shown = settled(before, stop)
    whole = before + more
    assert cut(whole, stop).startswith(shown)
    if cut(whole, stop) == whole:
        assert settled(whole, stop).startswith(shown)
