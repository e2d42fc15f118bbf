"""Writes to standard output and error without end."""

import os
import sys


def f(x):
    while True:
        print("x" * 10_000)
        print("x" * 10_000, file=sys.stderr)
        os.write(1, b"x" * 100_000)
        os.write(2, b"x" * 100_000)
