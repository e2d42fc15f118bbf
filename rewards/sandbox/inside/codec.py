"""Values as JSON: what crosses between two processes that do not trust each other is data, and never code.

JSON's own scalars stand for themselves; all else is an array that begins with a tag. Lists, dicts, sets, bytearrays and
numpy arrays are numbered in the order in which they first occur, so that one that occurs again, or contains itself,
stays one object, and so that changes to it can be sent back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

TYPE_CHECKING = False  # Importing `typing` would take longer than what is done here.
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Json: TypeAlias = Any


_SCALARS = frozenset({str, bool, float, type(None)})
_SMALL = 1 << 63
_ARRAY_KINDS = "biufcSU"


class CodecError(Exception):
    """Something is no encoded value, or cannot be encoded."""


class Exchange:
    """The values of one call and its answer, in one of the two processes.

    Both sides number the same objects in the same order, so a number means the same on both.
    """

    def __init__(self, export: Callable[[Any], Json], resolve: Callable[[str, list[Json]], Any]) -> None:
        """Start with no objects.

        Args:
            export: Encodes what is no data, as an array with a tag of its own.
            resolve: Decodes such an array, given its tag and the rest.
        """
        self._export = export
        self._resolve = resolve
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}

    def __len__(self) -> int:
        """Return how many objects have a number."""
        return len(self._objects)

    def encode(self, value: Any) -> Json:
        """Return a value as JSON.

        Raises:
            CodecError: It contains something that cannot be sent.
            RecursionError: It is nested too deeply.
        """
        kind = type(value)
        if kind in _SCALARS or (kind is int and -_SMALL < value < _SMALL):
            return value
        if kind is tuple:
            return ["t", *self._items(value)]
        tag = _MUTABLE.get(kind) or ("n" if _is_array(value) else None)
        if tag is not None:
            number = self._numbers.get(id(value))
            if number is not None:
                return ["r", number]
            self._add(value)
            return [tag, *self._content(value)]
        if kind is int:
            return ["i", hex(value)]
        if kind is bytes:
            return ["y", value.hex()]
        if kind is complex:
            return ["c", value.real, value.imag]
        if kind is frozenset:
            return ["f", *self._items(value)]
        parts = _parts(value)
        if parts is not None:
            return ["v", parts[0], *self._items(parts[1])]
        return self._export(value)

    def decode(self, data: Json) -> Any:
        """Return the value that some JSON stands for.

        Raises:
            CodecError: It stands for none.
        """
        try:
            return self._decode(data)
        except CodecError:
            raise
        except Exception as error:
            raise CodecError(f"not an encoded value: {type(error).__name__}") from error

    def content(self, number: int) -> Json:
        """Return what the object of this number contains now, for `replace` on the other side."""
        return self._content(self._object(number))

    def replace(self, number: int, content: list[Json]) -> None:
        """Give the object of this number other contents.

        Raises:
            CodecError: There is no such object, or it cannot contain that.
        """
        try:
            self._fill(self._object(number), content, clear=True)
        except CodecError:
            raise
        except Exception as error:
            raise CodecError(f"not the content of an object: {type(error).__name__}") from error

    def _object(self, number: Json) -> Any:
        if type(number) is not int or number < 0:
            raise CodecError("not the number of an object")
        return self._objects[number]

    def _add(self, value: Any) -> None:
        self._numbers[id(value)] = len(self._objects)
        self._objects.append(value)

    def _items(self, values: Any) -> list[Json]:
        # What is most common, plain scalars, is decided here, without a call.
        return [
            item if (kind := type(item)) in _SCALARS or (kind is int and -_SMALL < item < _SMALL) else self.encode(item)
            for item in values
        ]

    def _content(self, value: Any) -> list[Json]:
        kind = type(value)
        if kind is dict:
            return self._items([each for pair in value.items() for each in pair])
        if kind is bytearray:
            return [value.hex()]
        if kind is list or kind is set:
            return self._items(value)
        return [value.dtype.str, list(value.shape), value.tobytes().hex()]

    def _decode(self, data: Json) -> Any:
        if type(data) is not list:
            return data
        tag, rest = data[0], data[1:]
        if tag == "t":
            return tuple(self._decoded(rest))
        if tag in _EMPTY:
            value = _EMPTY[tag]()
            self._add(value)
            self._fill(value, rest)
            return value
        if tag == "n":
            array = _array(*rest)
            self._add(array)
            return array
        if tag == "r":
            return self._object(rest[0])
        if tag == "i":
            return int(rest[0], 16)
        if tag == "y":
            return bytes.fromhex(rest[0])
        if tag == "c":
            return complex(*rest)
        if tag == "f":
            return frozenset(self._decoded(rest))
        if tag == "v":
            return _VALUES[rest[0]][1](*self._decoded(rest[1:]))
        return self._resolve(tag, rest)

    def _decoded(self, data: list[Json]) -> list[Any]:
        return [each if type(each) is not list else self._decode(each) for each in data]

    def _fill(self, value: Any, content: list[Json], *, clear: bool = False) -> None:
        kind = type(value)
        if kind not in _MUTABLE:
            value[...] = _array(*content)
            return
        items: Any = bytes.fromhex(content[0]) if kind is bytearray else self._decoded(content)
        if kind is dict:
            items = dict(zip(items[::2], items[1::2], strict=True))
        if clear:
            value.clear()
        if kind is dict or kind is set:
            value.update(items)
        else:
            value.extend(items)


_MUTABLE: dict[type, str] = {list: "l", dict: "d", set: "s", bytearray: "a"}
_EMPTY: dict[str, Callable[[], Any]] = {tag: kind for kind, tag in _MUTABLE.items()}


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray and value.dtype.kind in _ARRAY_KINDS


def _array(dtype: Any, shape: Any, data: Any) -> Any:
    import numpy

    return numpy.frombuffer(bytes.fromhex(data), dtype=_dtype(dtype)).reshape(shape).copy()


def _dtype(name: Any) -> Any:
    import numpy

    dtype = numpy.dtype(str(name))
    if dtype.kind not in _ARRAY_KINDS:
        raise CodecError("not an array of numbers or text")
    return dtype


def _parts(value: Any) -> tuple[str, tuple[Any, ...]] | None:
    """Return the kind of an immutable value, or of a container of the standard library, and its parts."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name in _VALUES:
        return name, _VALUES[name][0](value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic) and value.dtype.kind in _ARRAY_KINDS:
        return "numpy", (value.dtype.str, value.item() if value.dtype.kind in "SU" else value.tobytes())
    fields = getattr(kind, "_fields", None)
    if kind.__bases__ == (tuple,) and type(fields) is tuple and len(fields) == len(value):
        return "namedtuple", (kind.__name__, fields, tuple(value))
    return None


def _instance(module: str, name: str) -> Callable[..., Any]:
    """Return a constructor that imports its class when it is needed."""

    def construct(*parts: Any) -> Any:
        import importlib

        return getattr(importlib.import_module(module), name)(*parts)

    return construct


def _from_iso(name: str) -> Callable[[str], Any]:
    def construct(text: str) -> Any:
        import datetime

        return getattr(datetime, name).fromisoformat(text)

    return construct


def _namedtuple(name: str, fields: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    from collections import namedtuple

    return namedtuple(name, fields)(*values)


def _numpy_scalar(dtype: str, data: Any) -> Any:
    import numpy

    kind: Any = _dtype(dtype)
    return kind.type(data) if kind.kind in "SU" else numpy.frombuffer(data, dtype=kind)[0]


def _counter(items: tuple[tuple[Any, int], ...]) -> Any:
    from collections import Counter

    return Counter(dict(items))


# Parts are immutable, as objects that exist for the sake of a message only must not be numbered.
_VALUES: dict[str, tuple[Callable[[Any], tuple[Any, ...]], Callable[..., Any]]] = {
    "builtins.range": (lambda value: (value.start, value.stop, value.step), range),
    "builtins.slice": (lambda value: (value.start, value.stop, value.step), slice),
    "builtins.ellipsis": (lambda _: (), lambda: ...),
    "builtins.NotImplementedType": (lambda _: (), lambda: NotImplemented),
    "decimal.Decimal": (lambda value: (str(value),), _instance("decimal", "Decimal")),
    "fractions.Fraction": (lambda value: (value.numerator, value.denominator), _instance("fractions", "Fraction")),
    "datetime.date": (lambda value: (value.isoformat(),), _from_iso("date")),
    "datetime.time": (lambda value: (value.isoformat(),), _from_iso("time")),
    "datetime.datetime": (lambda value: (value.isoformat(),), _from_iso("datetime")),
    "datetime.timedelta": (
        lambda value: (value.days, value.seconds, value.microseconds),
        _instance("datetime", "timedelta"),
    ),
    "uuid.UUID": (lambda value: (str(value),), _instance("uuid", "UUID")),
    "collections.deque": (lambda value: (tuple(value), value.maxlen), _instance("collections", "deque")),
    "collections.Counter": (lambda value: (tuple(value.items()),), _counter),
    "collections.OrderedDict": (lambda value: (tuple(value.items()),), _instance("collections", "OrderedDict")),
    "collections.defaultdict": (
        lambda value: (value.default_factory, tuple(value.items())),
        _instance("collections", "defaultdict"),
    ),
    "numpy": (lambda value: (value,), _numpy_scalar),
    "namedtuple": (lambda value: (value,), _namedtuple),
}
