"""The program's process: runs what nobody trusts, and serves what the tester asks of it."""

from __future__ import annotations

import ast
import builtins
import contextlib
import ctypes
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator

from rewards.sandbox.inside import exceptions
from rewards.sandbox.inside.peer import Peer
from rewards.sandbox.inside.remote import DATA_TYPES, SPECIAL

TYPE_CHECKING = False  # Importing `typing` would take longer than what is done here.
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from rewards.sandbox.inside.codec import Json

_MODULE = "program"
_MOST_CUTS = 50
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


def main(reader: int, writer: int) -> NoReturn:
    """Serve the tester until it is gone, then end without a look back; never returns into the tester's code."""
    try:
        _forget(keep=(reader, writer))
        Served(reader, writer).serve()
    except BaseException:
        os._exit(1)


def _forget(keep: tuple[int, int]) -> None:
    """Give up all that came with the fork: file descriptors, and signals that the tester had set up."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    for number in map(int, os.listdir("/dev/fd")):
        if number > 2 and number not in keep:
            with contextlib.suppress(OSError):
                os.close(number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Borrowed:
    """A function of the tests; it can be called, and nothing else."""

    def __init__(self, peer: Peer, number: int) -> None:
        """Stand for what the tester has lent under this number."""
        self._peer = peer
        self._number = number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Let the tester call it."""
        return self._peer.ask("call", self._number, *args, **kwargs)


class BorrowedIterator(Borrowed):
    """An iterator of the tests."""

    def __iter__(self) -> Iterator[Any]:
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Let the tester take the next item."""
        return self._peer.ask("next", self._number)


class Served(Peer):
    """The line to the tester, in the program."""

    def __init__(self, reader: int, writer: int) -> None:
        """Take over two file descriptors."""
        super().__init__(reader, writer)
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._borrowed: dict[int, Borrowed] = {}
        self._names: dict[str, Any] = {}
        self._operations: dict[str, Callable[..., Any]] = {
            "load": self._load,
            "names": self._named,
            "data": _data,
            "eq": lambda one, other: one == other,
            "getattr": getattr,
            "setattr": setattr,
            "delattr": delattr,
            "special": lambda thing, name, *args, **kwargs: getattr(type(thing), name)(thing, *args, **kwargs),
            "await": _await,
        }

    def perform(self, operation: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Do what the tester asks for."""
        return self._operations[operation](*args, **kwargs)

    def export(self, value: Any) -> Json:
        """Number an object of the program, so that the tester can ask for it."""
        if isinstance(value, Borrowed):
            return ["k", value._number]
        if isinstance(value, type):
            known = issubclass(value, (BaseException, *DATA_TYPES)) and vars(builtins).get(value.__name__) is value
            if known:
                return ["b", value.__name__]
            if issubclass(value, BaseException):
                return ["x", self._number(value), *exceptions.describe_class(value)]
        kind = type(value)
        methods = [name for name in SPECIAL if getattr(kind, name, None) is not getattr(object, name, None)]
        return ["h", self._number(value), kind.__name__, methods, issubclass(kind, DATA_TYPES)]

    def resolve(self, tag: str, rest: list[Json]) -> Any:
        """Return an object by its number, or what stands for one of the tester's."""
        if tag == "h":
            return self._objects[rest[0]]
        if tag == "b":
            return getattr(builtins, rest[0])
        number, kind = rest
        if number not in self._borrowed:
            self._borrowed[number] = (BorrowedIterator if kind == "iterator" else Borrowed)(self, number)
        return self._borrowed[number]

    def exception(self, error: BaseException) -> Json:
        """Encode an exception."""
        return exceptions.describe(error)

    def failure(self, data: Json) -> BaseException:
        """Decode an exception."""
        return exceptions.error_like(*data)

    def _number(self, value: Any) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)
        return self._numbers[id(value)]

    def _load(self, sources: list[tuple[str, str]], entry_point: str | None, paths: list[str]) -> None:
        """Run the first of the texts that is a program and defines the entry point."""
        sys.path += paths
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment] # What `site` would do.
        module = types.ModuleType(_MODULE)
        sys.modules[_MODULE] = module
        self._names = module.__dict__
        exec(compile(_choose(sources, entry_point), "<program>", "exec"), self._names)

    def _named(self, names: list[str]) -> dict[str, Any]:
        """Return those of the names that the program defines."""
        return {name: self._names[name] for name in names if name in self._names}


def _choose(sources: list[tuple[str, str]], entry_point: str | None) -> ast.Module:
    """Return the first form that compiles and defines the entry point, or else the longest beginning of one that does.

    What follows the code in a text may be prose.

    Raises:
        SyntaxError: No form has anything to run.
    """
    sources = [(before, text) for before, text in sources if text.strip()]
    for before, text in sources:
        try:
            tree = _compiled(before + text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if tree.body and (entry_point is None or entry_point in _defined(tree)):
            return tree
    found = [_beginning(before, text, entry_point) for before, text in sources]
    lines, longest = max(found, key=lambda each: each[0], default=(0, ast.Module([], [])))
    if not lines:
        raise SyntaxError("there is no program")
    return longest


def _beginning(before: str, text: str, entry_point: str | None) -> tuple[int, ast.Module]:
    """Return the longest beginning that is found to compile, and how many lines of the text are in it."""
    lines = (before + text).split("\n")
    first = before.count("\n")
    for _ in range(_MOST_CUTS):
        try:
            tree = _compiled("\n".join(lines))
        except SyntaxError as error:
            del lines[max(0, min((error.lineno or 1) - 1, len(lines) - 1)) :]
        except (ValueError, RecursionError, MemoryError):
            break
        else:
            defines = entry_point is None or entry_point in _defined(tree)
            return sum(map(bool, map(str.strip, lines[first:]))) if defines else 0, tree
    return 0, ast.Module([], [])


def _compiled(source: str) -> ast.Module:
    tree = ast.parse(source)
    compile(tree, "<program>", "exec")
    return tree


def _defined(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
        else:
            names.update(n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    return names


def _data(value: Any) -> Any:
    """Return the content of an object that derives from a data type, by what that type itself says."""
    return next(content(value) for kind, content in _CONTENTS.items() if issubclass(type(value), kind))


_CONTENTS: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    complex: complex.__complex__,
    str: str.__str__,
    bytes: lambda value: bytes(bytes.__iter__(value)),
    bytearray: lambda value: bytearray(bytearray.__iter__(value)),
    tuple: lambda value: tuple(tuple.__iter__(value)),
    list: lambda value: list(list.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
}


def _await(value: Any) -> Any:
    import asyncio

    async def wait() -> Any:
        return await value

    return asyncio.run(wait())
