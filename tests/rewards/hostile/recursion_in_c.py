"""Crashes the interpreter by nested data, and by nested text."""

import sys

sys.setrecursionlimit(1 << 30)


def f(x):
    nested = []
    for _ in range(10_000_000):
        nested = [nested]
    try:
        eval("-" * 10_000_000 + "1")
    finally:
        return nested  # noqa: B012
