"""Values that cross between tester and program: what is data arrives as it was, and nothing else arrives as data."""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import json
import math
import uuid
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.sandbox.inside.codec import CodecError, Exchange

_hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers().map(lambda number: number << 20_000)  # More digits than Python turns into text.
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.dates()
    | st.times()
    | st.datetimes(timezones=st.just(datetime.UTC) | st.none())
    | st.timedeltas()
    | st.uuids()
    | st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 3)),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=6,
)
_values = st.recursive(
    _hashable | st.binary().map(bytearray),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(_hashable, inner, max_size=4)
        | st.sets(_hashable, max_size=4)
        | st.lists(inner, max_size=4).map(collections.deque)
        | st.dictionaries(_hashable, inner, max_size=4).map(collections.OrderedDict)
        | st.dictionaries(_hashable, st.integers(), max_size=4).map(collections.Counter)
    ),
    max_leaves=12,
)


def _refuse(*_: Any) -> Any:
    raise CodecError("no data")


def _exchange() -> Exchange:
    return Exchange(_refuse, _refuse)


def _through(value: Any) -> Any:
    return _exchange().decode(json.loads(json.dumps(_exchange().encode(value))))


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of the same types throughout."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple | collections.deque):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(_same, one.values(), other.values()))
    return bool(one == other)


@given(_values)
def test_data_arrives_as_it_was(value: Any) -> None:
    assert _same(_through(value), value)


def test_numbers_that_equal_nothing_or_hide_their_sign_arrive() -> None:
    assert math.isnan(_through(math.nan))
    assert math.copysign(1, _through(-0.0)) == -1
    assert _through([math.inf, -math.inf]) == [math.inf, -math.inf]
    assert _through(decimal.Decimal("1.10")).as_tuple() == decimal.Decimal("1.10").as_tuple()
    assert _through(fractions.Fraction(1, 3)) == fractions.Fraction(1, 3)
    assert _through(uuid.UUID(int=5)) == uuid.UUID(int=5)
    assert _through([..., NotImplemented, slice(1, None)]) == [..., NotImplemented, slice(1, None)]


def test_named_tuples_keep_their_names() -> None:
    point = collections.namedtuple("Point", "x y")
    arrived = _through(point(1, [2]))
    assert arrived == (1, [2])
    assert (arrived.x, type(arrived).__name__) == (1, "Point")


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "float32", "complex128", "U3", "S2"])
def test_arrays_arrive(dtype: str) -> None:
    array = np.zeros((2, 3), dtype)
    arrived = _through([array, array[0, 0]])
    assert arrived[0].dtype == array.dtype
    assert np.array_equal(arrived[0], array)
    assert type(arrived[1]) is type(array[0, 0])
    arrived[0][0, 0] = 1


def test_what_is_one_object_stays_one() -> None:
    inner: list[Any] = [1]
    arrived = _through({"a": inner, "b": (inner,)})
    assert arrived["a"] is arrived["b"][0]
    inner.append(inner)
    arrived = _through(inner)
    assert arrived[1] is arrived


@given(st.lists(_values, min_size=1, max_size=3), st.data())
def test_changes_come_back(values: list[Any], data: st.DataObject) -> None:
    """What one side does to the containers it was given, the other finds done to its own."""
    here, there = _exchange(), _exchange()
    arrived = there.decode(json.loads(json.dumps(here.encode(values))))
    target = there._objects[data.draw(st.integers(0, len(there) - 1))]
    if isinstance(target, list | bytearray):
        target.append(7)
        target.reverse()
    elif isinstance(target, dict):
        target["new"] = [8]
    else:
        target.add("new")
    for number in range(len(here)):
        here.replace(number, json.loads(json.dumps(there.content(number))))
    assert _same(values, arrived)


class _Equal:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class _Integer(int):
    pass


@pytest.mark.parametrize("value", [_Equal(), _Integer(3), object(), len, _Equal, iter([])])
def test_what_is_no_plain_data_is_not_sent_as_data(value: Any) -> None:
    with pytest.raises(CodecError):
        _exchange().encode([value])


@given(
    st.recursive(
        st.none() | st.integers(-3, 10) | st.floats() | st.sampled_from(list("tldsfiyacnrvhkbx")),
        lambda inner: st.lists(inner, max_size=5),
    )
)
def test_what_makes_no_sense_is_refused_in_one_way(message: Any) -> None:
    exchange = _exchange()
    exchange.encode([[1], {2: 3}])
    try:
        exchange.decode(message)
        exchange.replace(1, message)
    except CodecError:
        pass


@pytest.mark.parametrize(
    "message",
    [
        ["v", "numpy", "O", ["y", "00" * 8]],
        ["n", "O", [1], "00" * 8],
        ["v", "os.system", "true"],
        ["v", "namedtuple", "X", ["t", "a b", "import os"], ["t", 1, 2]],
        ["v", "collections.defaultdict", ["x", "eval"], ["t"]],
        ["r", -1],
        ["r", True],
        ["i", "9" * 5000 + "z"],
        [],
    ],
)
def test_what_is_none_of_the_known_kinds_is_refused(message: Any) -> None:
    with pytest.raises(CodecError):
        _exchange().decode(message)
