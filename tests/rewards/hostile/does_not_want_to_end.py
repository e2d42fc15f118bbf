"""Catches all that could end it, and goes on."""

import contextlib
import signal

for number in range(1, 65):
    with contextlib.suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_IGN)


def f(x):
    while True:
        try:
            while True:
                raise SystemExit
        except BaseException:
            continue
