"""Leaves a process behind that has its own session and no parent."""

import contextlib
import os
import time

if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(256):
            with contextlib.suppress(OSError):
                os.close(number)
        time.sleep(1000)
    os._exit(0)


def f(x):
    return None
