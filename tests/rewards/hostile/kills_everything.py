"""Kills every process that it can see, its own group included."""

import os
import signal


def f(x):
    os.kill(-1, signal.SIGKILL)
    os.killpg(0, signal.SIGKILL)
    return True
