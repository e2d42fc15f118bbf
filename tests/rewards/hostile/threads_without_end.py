"""Starts threads until nobody can start any."""

import threading
import time


def f(x):
    while True:
        threading.Thread(target=time.sleep, args=(1000,)).start()
