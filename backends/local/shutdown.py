"""The end of the interpreter: threads that are still inside torch leave it first.

Models' threads are daemons, so that one that nobody closed does not keep the process alive. But Python ends daemons
wherever they are, and one that it ends inside torch takes the process down with it (SIGABRT).
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from backends.errors import BackendClosedError

_EXIT_SECONDS = 2.0
"""How long the process waits for all of them together, should one be stuck within a single operation."""

_working: dict[threading.Thread, Callable[[], object]] = {}
"""By thread, what tells it to end. Only threads that run are here, and they hold their engines anyway."""


def watch(thread: threading.Thread, stop: Callable[[], object]) -> None:
    """Have a running thread end before the interpreter does.

    Args:
        thread: The thread; it calls `unwatch` at its end.
        stop: Tells it to end after its pass through the model, and does not wait for that.
    """
    _working[thread] = stop


def unwatch() -> None:
    """Forget the current thread, which ends."""
    _working.pop(threading.current_thread(), None)


def _stop_all() -> None:
    """Stop all threads, between two modules of the model if need be, and wait a while for their end."""
    working = dict(_working)
    if not working:
        return

    def interrupt(module: torch.nn.Module, inputs: Any) -> None:
        if threading.current_thread() in working:
            raise BackendClosedError("the process ends while the model is working")

    # A pass over a long prompt can take minutes. Nothing takes the hook away: the process ends.
    torch.nn.modules.module.register_module_forward_pre_hook(interrupt)
    for stop in working.values():
        stop()
    deadline = time.monotonic() + _EXIT_SECONDS
    for thread in working:
        thread.join(max(0.0, deadline - time.monotonic()))


# After the joining of ordinary threads, which may need their models until then, and before daemons end.
atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    # A child has none of its parent's threads, and their locks may never be free in it.
    os.register_at_fork(after_in_child=_working.clear)
