"""How tests as text are counted."""

from __future__ import annotations

import pytest

from rewards.sandbox.inside.peer import Interruption
from rewards.sandbox.inside.sites import Text, used_names


def _counts(source: str, **names: object) -> tuple[int, int]:
    text = Text(source)
    text.run(dict(names))
    return text.sites.passed, len(text.sites.lines)


def test_every_assertion_is_a_site_and_a_failing_one_does_not_stop_the_others() -> None:
    assert _counts("assert 1 + 1 == 2\nassert 1 + 1 == 3\nassert 1 / 0\nassert [1]") == (2, 4)


def test_assertions_of_constants_are_none() -> None:
    assert _counts("assert True, 'good'\nassert 1\nassert ('always', 'true')\nassert 1 + 1 == 2") == (1, 1)
    with pytest.raises(AssertionError):
        _counts("assert False")


def test_a_site_passes_if_it_always_holds_and_was_reached() -> None:
    assert _counts("for i in range(3): assert i < 3") == (1, 1)
    assert _counts("for i in range(3): assert i < 2") == (0, 1)
    assert _counts("for i in range(3): assert i > 0") == (0, 1)
    assert _counts("def check(): assert 1 + 1 == 2") == (0, 1)
    assert _counts("if []: assert 1 + 1 == 2\nelse: assert 1 + 1 == 2") == (1, 2)


def test_sites_work_where_assertions_do() -> None:
    source = """
class A:
    assert len('ab') == 2
    def __check(self, *, x=1):
        assert (y := x + 1) == 2, y
        yield y
        assert y
    def check(self):
        assert list(self.__check()) == [2]
A().check()
for value in [1]:
    try:
        assert value
    finally:
        assert value, (_ for _ in ())
"""
    assert _counts(source) == (6, 6)


def test_exceptions_in_assertions_fail_them_but_the_end_of_time_passes_through() -> None:
    def late() -> None:
        raise Interruption

    def leave() -> None:
        raise SystemExit

    assert _counts("assert leave()\nassert 1 + 1 == 2", leave=leave) == (1, 2)
    text = Text("for i in range(2): assert i == 0 or late()\nassert 1 + 1 == 2")
    with pytest.raises(Interruption):
        text.run({"late": late})
    assert text.sites.passed == 0, "what was begun and not finished has not held"


def test_what_went_wrong_first_is_remembered() -> None:
    text = Text("assert 1 + 1 == 2\nassert 1 + 1 == 3\nassert 1 / 0")
    text.run({})
    assert text.sites.problem == "the assertion in line 2 does not hold"


def test_names_are_told_apart_by_their_use() -> None:
    text = Text(
        "import os\nfrom math import pi as p\ndef check(f, *, g=1): return f(x)\nassert re.sub(y) and np.pi\nz = len(y)"
    )
    assert text.wanted == {"f", "g", "x", "re", "y", "np", "z"} - {"g"}
    assert text.bound == {"os", "p", "check", "f", "g", "z"}
    assert text.modules == {"re": "re", "np": "numpy"}
    assert Text("queue.put(1)\nqueue()").modules == {}, "it is called, so it is no module"
    assert used_names("f(x, len(y))") == {"f", "x", "y"}
    assert used_names("f(") == set()
