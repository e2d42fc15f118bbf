"""Calls between the tester and the program: each can ask the other, one question at a time, over two pipes."""

from __future__ import annotations

import _thread
import json
import os
from collections.abc import Callable

from rewards.sandbox.inside.codec import CodecError, Exchange

TYPE_CHECKING = False  # Importing `typing` would take longer than what is done here.
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from rewards.sandbox.inside.codec import Json

LONGEST_MESSAGE = 32 << 20
"""Bytes."""
_LENGTHS = {"ask": 5, "result": 4, "error": 4}


class Interruption(BaseException):
    """The time is over; no exception of the program or the tests, and never told to the program."""


class PeerLostError(Exception):
    """The other process is gone, or says what makes no sense; nothing can be asked of it any more."""


class Peer:
    """One end of the line. Subclasses say what they `perform`, and how they encode what is no data."""

    def __init__(self, reader: int, writer: int) -> None:
        """Take over two file descriptors."""
        self._reader = reader
        self._writer = writer
        self._lost = ""
        self._last = 0
        self._thread = _thread.get_ident()

    def perform(self, operation: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Do what the other side asks for; an exception is told to it."""
        raise NotImplementedError

    def export(self, value: Any) -> Json:
        """Encode what is no data."""
        raise NotImplementedError

    def resolve(self, tag: str, rest: list[Json]) -> Any:
        """Decode what is no data."""
        raise NotImplementedError

    def exception(self, error: BaseException) -> Json:
        """Encode an exception."""
        raise NotImplementedError

    def failure(self, data: Json) -> BaseException:
        """Decode an exception."""
        raise NotImplementedError

    def ask(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        """Let the other side perform an operation; return its result, and take over its changes to the arguments.

        Raises:
            PeerLostError: There is no answer.
            BaseException: What the operation raised there.
        """
        if _thread.get_ident() != self._thread:
            raise RuntimeError("only the main thread can call what it was given")
        exchange = Exchange(self.export, self.resolve)
        self._last += 1
        number = self._last
        question = ["ask", number, operation, exchange.encode(list(args)), exchange.encode(kwargs)]
        self._whole(self._write, _text(question))
        while True:
            kind, of, *rest = self._receive()
            if kind == "ask":
                self._answer(of, *rest)
            elif of == number:
                return self._outcome(exchange, kind, *rest)
            else:
                self._lose("an answer to no question")

    def serve(self) -> NoReturn:
        """Answer questions until there is nobody to ask.

        Raises:
            PeerLostError: The other side is gone.
        """
        while True:
            kind, number, *rest = self._receive()
            if kind != "ask":
                self._lose("an answer to no question")
            self._answer(number, *rest)

    def _outcome(self, exchange: Exchange, kind: str, changes: Json, data: Json) -> Any:
        try:
            for number, content in changes:
                exchange.replace(number, content)
            if kind == "result":
                return exchange.decode(data)
            failure = self.failure(data)
        except (CodecError, TypeError, ValueError) as error:
            self._lose(str(error))
        raise failure

    def _answer(self, number: Json, operation: Json, args: Json, kwargs: Json) -> None:
        exchange = Exchange(self.export, self.resolve)
        try:
            arguments, named = exchange.decode(args), exchange.decode(kwargs)
            before = [exchange.content(each) for each in range(len(exchange))]
        except CodecError as error:
            self._lose(str(error))
        try:
            result = self.perform(operation, arguments, named)
        except (Interruption, PeerLostError):
            raise
        except BaseException as error:
            failure = self.exception(error)
            self._reply("error", number, exchange, before, lambda: failure)
        else:
            self._reply("result", number, exchange, before, lambda: exchange.encode(result))

    def _reply(
        self, kind: str, number: Json, exchange: Exchange, before: list[Json], encode: Callable[[], Json]
    ) -> None:
        try:
            data = _text([kind, number, _changes(exchange, before), encode()])
        except Exception as error:
            data = _text(["error", number, [], self.exception(error)])
        self._whole(self._write, data)

    def _receive(self) -> Any:
        size = int.from_bytes(self._whole(self._read, 4), "big")
        if size > LONGEST_MESSAGE:
            self._lose("a message that is too large")
        data = self._whole(self._read, size)
        try:
            message = json.loads(data)
            understood = type(message) is list and len(message) == _LENGTHS[message[0]]
        except Exception:
            understood = False
        if not understood:
            self._lose("a message that makes no sense")
        return message

    def _whole(self, transfer: Callable[[Any], bytes], what: Any) -> bytes:
        """Transfer a part of a message wholly; where that is interrupted, the rest of the line makes no sense."""
        if self._lost:
            raise PeerLostError(self._lost)
        self._lost = "interrupted"
        try:
            data = transfer(what)
        except OSError:
            self._lose("it is gone")
        self._lost = ""
        return data

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = os.read(self._reader, min(size - len(data), 1 << 20))
            if not chunk:
                raise OSError("closed")
            data += chunk
        return bytes(data)

    def _write(self, data: bytes) -> bytes:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._writer, rest) :]
        return b""

    def _lose(self, why: str) -> NoReturn:
        self._lost = why
        raise PeerLostError(why)


def _text(message: Json) -> bytes:
    data = json.dumps(message).encode()
    if len(data) > LONGEST_MESSAGE:
        raise ValueError("too large to be sent")
    return len(data).to_bytes(4, "big") + data


def _changes(exchange: Exchange, before: list[Json]) -> list[list[Json]]:
    """Return the contents of objects that are no longer what they were."""
    changes = []
    for number, content in enumerate(before):
        now = exchange.content(number)
        if now != content:
            changes.append([number, now])
    return changes
