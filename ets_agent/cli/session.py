"""Every command runs inside `session`: signals end it at once, errors end it with one line, the terminal stays sane."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, TypeVar

from ets_agent.cli import errors

T = TypeVar("T")

GRACE = 1.0
"""Seconds that an interrupted command usually has to stop its children and threads before it is ended over them."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = b"\x1b[?25h"
_INTERRUPTED, _DISMISSED = b"!", b"."


class Session:
    """A running command; made by `session`.

    The first SIGINT or SIGTERM cancels the coroutine, or raises `SystemExit` where none is running yet, so that
    whatever is open gets closed. A thread that is deep in a model's forward pass cannot be cancelled, hence the
    watchdog: after ``grace`` seconds, or on a second signal, the process ends whatever it is doing.
    """

    def __init__(self) -> None:
        """Prepare the watchdog; `session` starts it."""
        self.exit_code: int | None = None
        """128 plus the number of the signal that came, once one came; a command that is meant to be ended by signals
        sets 0 when it has ended as it should."""
        self.grace = GRACE
        """Seconds between the first signal and the watchdog's end of it; commands that need longer set it."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        # A pipe, because writing to one is safe inside a signal handler, unlike starting a thread or taking a lock.
        self._wake_read, self._wake_write = os.pipe()
        self._watchdog = threading.Thread(target=self._watch, name="ets-watchdog", daemon=True)

    def start(self) -> None:
        """Start the watchdog."""
        # Registered before anything big is imported, so that it runs after the exit handlers of everything else.
        atexit.register(self._leave)
        self._watchdog.start()

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end in an event loop of its own."""
        return asyncio.run(self._supervised(main))

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self.exit_code is not None:
            _end_now(128 + number)
        self.exit_code = 128 + number
        os.write(self._wake_write, _INTERRUPTED)
        if self._loop is None or self._task is None:
            raise SystemExit(self.exit_code)
        self._loop.call_soon_threadsafe(self._task.cancel)

    def end(self, code: int) -> NoReturn:
        """End the process with an exit code, at once: a thread is at work that nothing can stop."""
        _end_now(code)

    def close(self) -> None:
        """Dismiss the watchdog, unless a signal came: then it has to see the process off."""
        if self.exit_code is None:
            atexit.unregister(self._leave)
            os.write(self._wake_write, _DISMISSED)
            self._watchdog.join()
            os.close(self._wake_write)

    async def _supervised(self, main: Coroutine[Any, Any, T]) -> T:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            return await main
        finally:
            self._loop = self._task = None

    def _leave(self) -> None:
        """Spare whoever pressed Ctrl-C the orderly destruction of every module, which takes torch a second or more."""
        if self.exit_code is not None:
            os._exit(self.exit_code)

    def _watch(self) -> None:
        message = os.read(self._wake_read, 1)
        os.close(self._wake_read)
        if message == _INTERRUPTED:
            time.sleep(self.grace)
            _end_now(self.exit_code or errors.FAILURE)


@contextmanager
def session(*, debug: bool) -> Iterator[Session]:
    """Run the body of a command.

    Args:
        debug: Show the traceback of an error.

    Raises:
        SystemExit: With `errors.exit_code` after an error, or 128 plus the signal's number after SIGINT or SIGTERM.
    """
    current = Session()
    # Handlers belong to the main thread; elsewhere (an embedding program) signals are not this command's business.
    owner = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, current.interrupt) for number in _SIGNALS} if owner else {}
    current.start()
    try:
        yield current
    except (asyncio.CancelledError, KeyboardInterrupt):
        if current.exit_code is None:
            raise
    except Exception as error:
        # Errors on the way out of an interrupted run are its consequence, not news.
        if current.exit_code is None:
            errors.report(error, debug=debug)
            raise SystemExit(errors.exit_code(error)) from error
    finally:
        current.close()
        if current.exit_code is None:
            for number, handler in previous.items():
                signal.signal(number, handler)
        else:
            # A signal may come while a display is being set up, which then has no chance to clean up after itself.
            _show_cursor()
    if current.exit_code is not None:
        raise SystemExit(current.exit_code)


def _end_now(code: int) -> NoReturn:
    """End the process without waiting for anything, not even for a stream's lock, with the cursor shown."""
    _show_cursor()
    os._exit(code)


def _show_cursor() -> None:
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, _SHOW_CURSOR)
