"""What goes to stdout: results alone, safe on a terminal and byte for byte in a pipe."""

from __future__ import annotations

import io
import os
import sys
import unicodedata
from typing import TextIO

_UNSAFE = {"Cc", "Cs"}
_BIDIRECTIONAL = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def printable(text: str) -> str:
    """Return text with everything escaped by which a model could steer a terminal: control and bidi characters."""
    if text.isprintable():
        return text
    return "".join(_escaped(char) if _steers(char) else char for char in text)


def emit(text: str) -> None:
    """Write a text and a newline to stdout, escaped where stdout is a terminal.

    Raises:
        SystemExit: With code 1 where the reader is gone (``ets … | head``), for which there is nobody to tell.
        OSError: Nothing could be written, for example because a disk is full.
    """
    out = sys.stdout
    if out is None:
        raise OSError("stdout is closed")
    try:
        print(printable(text) if out.isatty() else text, file=out, flush=True)
    except OSError as error:
        # What is still buffered would fail once more, with a traceback, when the interpreter flushes at exit.
        _abandon(out)
        if isinstance(error, BrokenPipeError):
            raise SystemExit(1) from None
        raise


def prepare_streams() -> None:
    """Let no character that the locale cannot encode turn a result into an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _steers(char: str) -> bool:
    if char in "\n\t":
        return False
    return unicodedata.category(char) in _UNSAFE or unicodedata.bidirectional(char) in _BIDIRECTIONAL


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _abandon(stream: TextIO) -> None:
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # not a file at all
        pass
