"""Exceptions across processes: builtin ones as themselves, others as classes of the same name."""

from __future__ import annotations

import builtins

from rewards.sandbox.inside.codec import CodecError

TYPE_CHECKING = False  # Importing `typing` would take longer than what is done here.
if TYPE_CHECKING:
    from rewards.sandbox.inside.codec import Json

_LONGEST_TEXT = 2000
_SMALL = 1 << 63
_BUILTIN = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, BaseException) and kind.__name__ == name
}
_stand_ins: dict[tuple[str, str], type[BaseException]] = {}


def describe_class(kind: type[BaseException]) -> list[str]:
    """Return name and module of an exception class, and the builtin class that it comes closest to."""
    nearest = next(each.__name__ for each in kind.__mro__ if _BUILTIN.get(each.__name__) is each)
    return [kind.__name__, kind.__module__, nearest]


def class_like(name: Json, module: Json, nearest: Json) -> type[BaseException]:
    """Return the builtin exception class of a description, or the class that stands in for another one.

    Raises:
        CodecError: It describes no exception class.
    """
    if module == "builtins" and name in _BUILTIN:
        return _BUILTIN[name]
    if nearest not in _BUILTIN or not isinstance(name, str) or not isinstance(module, str):
        raise CodecError("not an exception class")
    known = _stand_ins.get((module, name))
    if known is None:
        known = _stand_ins[module, name] = type(name, (_BUILTIN[nearest],), {"__module__": module})
    return known


def describe(error: BaseException) -> list[Json]:
    """Return an exception as JSON: its class, its message, and its arguments where they say all there is to say."""
    args: tuple[object, ...] | None
    name, module, nearest = describe_class(type(error))
    message = _message(error)
    args = error.args
    if isinstance(error, OSError) and error.filename is not None:
        args = (error.errno, error.strerror, error.filename)
    if not all(map(_is_plain, args)):
        args = None
    if module != "builtins" and args is not None and message != _message(Exception(*args)):
        args = None  # The class has a way of its own to say it.
    return [name, module, nearest, message, None if args is None else list(args)]


def error_like(name: Json, module: Json, nearest: Json, message: Json, args: Json) -> BaseException:
    """Return an exception like the one described.

    Raises:
        CodecError: It describes none.
    """
    kind = class_like(name, module, nearest)
    try:
        return kind(*args) if args is not None else kind(message)
    except Exception:  # Some classes want other arguments; without them, they are still what `except` looks for.
        error = kind.__new__(kind)
        error.args = (message,)
        return error


def _message(error: BaseException) -> str:
    try:
        return str(error)[:_LONGEST_TEXT]
    except Exception:
        return ""


def _is_plain(value: object) -> bool:
    if type(value) is str:
        return len(value) <= _LONGEST_TEXT
    return value is None or type(value) in (bool, float) or (type(value) is int and -_SMALL < value < _SMALL)
