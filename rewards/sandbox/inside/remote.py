"""The program's objects in the tester's process: what is no data stays with the program, and is asked there.

An object of the program must not learn what a test expects of it, or it could be whatever is expected. So it never
equals data, and data is not handed to its operators, nor to methods that data types have, unless the test itself names
its class, as a test of a class does.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from types import BuiltinFunctionType

from rewards.sandbox.inside import exceptions
from rewards.sandbox.inside.codec import CodecError
from rewards.sandbox.inside.peer import Peer

TYPE_CHECKING = False  # Importing `typing` would take longer than what is done here.
if TYPE_CHECKING:
    from typing import Any

    from rewards.sandbox.inside.codec import Json

DATA_TYPES: tuple[type, ...] = (
    int,
    float,
    complex,
    str,
    bytes,
    bytearray,
    tuple,
    list,
    dict,
    set,
    frozenset,
    bool,
    range,
    type(None),
)
"""Builtin types that the program may hand out as objects; they cannot do anything but make data."""

_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow", "matmul", "and", "or", "xor")
_WITH_OPERAND = frozenset(
    [f"__{prefix}{name}__" for name in (*_BINARY, "lshift", "rshift") for prefix in ("", "r", "i")]
    + [f"__{name}__" for name in ("lt", "le", "gt", "ge", "contains")]
)
_OTHERS = frozenset(
    f"__{name}__"
    for name in (
        *("call", "len", "iter", "next", "reversed", "getitem", "setitem", "delitem", "enter", "exit", "bool", "int"),
        *("float", "complex", "index", "round", "trunc", "floor", "ceil", "abs", "neg", "pos", "invert", "await"),
        *("instancecheck", "subclasscheck", "str", "repr", "format"),
    )
)
SPECIAL = _WITH_OPERAND | _OTHERS
"""Special methods that are asked of the program, where its class has them."""

_SHOWN = frozenset({"__name__", "__qualname__", "__module__", "__doc__", "__dict__", "__annotations__", "__wrapped__"})
_DATA_METHODS = frozenset(
    name for kind in (str, bytes, int, float, list, tuple, dict, set) for name in vars(kind) if not name.startswith("_")
)


class Remote:
    """An object of the program."""

    __slots__ = ("_remote_handle",)

    _remote_peer: Program
    _remote_tested: bool
    _remote_has_data: bool

    def __init__(self, handle: int) -> None:
        """Stand for the object with this number."""
        object.__setattr__(self, "_remote_handle", handle)

    def __eq__(self, other: object) -> bool:
        """Equal itself, objects that the program says are equal, and data only where it derives from data."""
        if self is other:
            return True
        if isinstance(other, Remote):
            return self._remote_peer.ask("eq", self, other) is True
        return self._remote_has_data and bool(self._remote_peer.ask("data", self) == other)

    def __hash__(self) -> int:
        """Hash like the data that it derives from."""
        return hash(self._remote_peer.ask("data", self)) if self._remote_has_data else hash(self._remote_handle)

    def __getattr__(self, name: str) -> Any:
        """Ask the program for an attribute, but not for one by which it could pass for something else."""
        if name.startswith("__") and name not in _SHOWN:
            raise AttributeError(name)
        if name in _DATA_METHODS and not self._remote_tested:
            if self._remote_has_data:
                return getattr(self._remote_peer.ask("data", self), name)
            raise AttributeError(f"a {type(self).__name__} object of the program is no data to call {name!r} of")
        return self._remote_peer.ask("getattr", self, name)

    def __setattr__(self, name: str, value: object) -> None:
        """Let the program set an attribute."""
        self._remote_peer.ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        """Let the program delete an attribute."""
        self._remote_peer.ask("delattr", self, name)


class Program(Peer):
    """The line to the program, in the tester."""

    def __init__(self, reader: int, writer: int) -> None:
        """Take over two file descriptors."""
        super().__init__(reader, writer)
        self.named: frozenset[str] = frozenset()
        """Names of classes that the tests name; their objects are what is tested."""
        self._lent: list[tuple[str, Any]] = []
        self._lent_numbers: dict[int, int] = {}
        self._remotes: dict[int, Any] = {}
        self._handles: dict[type[BaseException], int] = {}
        self._classes: dict[tuple[str, tuple[str, ...], bool], type[Remote]] = {}

    def perform(self, operation: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call what was lent to the program; nothing else can be done with the tester's objects."""
        number, *rest = args
        if type(number) is not int or not 0 <= number < len(self._lent):
            raise TypeError("there is no such object")
        kind, lent = self._lent[number]
        if operation == "call" and kind == "function":
            return lent(*rest, **kwargs)
        if operation == "next" and kind == "iterator":
            return next(lent)
        raise TypeError(f"a {type(lent).__name__} of the tests can only be passed on")

    def export(self, value: Any) -> Json:
        """Lend a callable or an iterator to the program, or name an object that both sides know."""
        if isinstance(value, Remote):
            return ["h", value._remote_handle]
        if isinstance(value, type) and value in self._handles:
            return ["h", self._handles[value]]
        if _is_builtin(value):
            return ["b", value.__name__]
        if id(value) not in self._lent_numbers:
            kind = "iterator" if hasattr(type(value), "__next__") else "function" if callable(value) else "object"
            self._lent_numbers[id(value)] = len(self._lent)
            self._lent.append((kind, value))
        number = self._lent_numbers[id(value)]
        return ["k", number, self._lent[number][0]]

    def resolve(self, tag: str, rest: list[Json]) -> Any:
        """Return what stands for an object of the program, or what was lent to it."""
        if tag == "h":
            return self._remote(*rest)
        if tag == "k":
            if type(rest[0]) is not int or rest[0] < 0:
                raise CodecError("not a number of what was lent")
            return self._lent[rest[0]][1]
        if tag == "b":
            return _DATA_TYPES[rest[0]]
        if tag == "x" and type(rest[0]) is int:
            kind = exceptions.class_like(*rest[1:])
            self._handles[kind] = rest[0]
            return kind
        raise CodecError("unknown tag")

    def exception(self, error: BaseException) -> Json:
        """Encode an exception."""
        return exceptions.describe(error)

    def failure(self, data: Json) -> BaseException:
        """Decode an exception."""
        return exceptions.error_like(*data)

    def _remote(self, handle: int, name: str, methods: list[str], has_data: bool) -> Any:
        if type(handle) is not int or type(name) is not str or type(has_data) is not bool:
            raise CodecError("not an object of the program")
        if handle not in self._remotes:
            known = tuple(sorted(SPECIAL.intersection(methods)))
            key = (name, known, has_data)
            if key not in self._classes:
                self._classes[key] = self._class(name, known, has_data)
            remote = self._classes[key](handle)
            if name == "coroutine" and "__await__" in known:
                return _coroutine(remote)
            self._remotes[handle] = remote
        return self._remotes[handle]

    def _class(self, name: str, methods: tuple[str, ...], has_data: bool) -> type[Remote]:
        tested = name in self.named
        members: dict[str, Any] = {each: _forwarded(each) for each in methods}
        members |= {"__slots__": (), "_remote_peer": self, "_remote_tested": tested, "_remote_has_data": has_data}
        return type(name, (Remote,), members)


def _is_builtin(value: Any) -> bool:
    return isinstance(value, type | BuiltinFunctionType) and vars(builtins).get(str(value.__name__)) is value


_DATA_TYPES = {
    kind.__name__: kind
    for kind in (*DATA_TYPES, *(each for each in vars(builtins).values() if isinstance(each, type)))
    if kind in DATA_TYPES or issubclass(kind, BaseException)
}


def _forwarded(name: str) -> Callable[..., Any]:
    """Return a special method that asks the program."""
    if name == "__await__":
        return _await

    def method(self: Remote, *args: Any, **kwargs: Any) -> Any:
        if name in _WITH_OPERAND and not self._remote_tested and not isinstance(args[0], Remote):
            if self._remote_has_data:
                return getattr(self._remote_peer.ask("data", self), name)(*args)
            if name == "__contains__":
                raise TypeError(f"a {type(self).__name__} object of the program is no data to look into")
            return NotImplemented
        return self._remote_peer.ask("special", self, name, *args, **kwargs)

    method.__name__ = name
    return method


def _await(remote: Remote) -> Iterator[Any]:
    return remote._remote_peer.ask("await", remote)  # type: ignore[no-any-return]
    yield


async def _coroutine(remote: Remote) -> Any:
    """Await a coroutine of the program; unlike an object, this is what `asyncio.run` and the like take."""
    return remote._remote_peer.ask("await", remote)
