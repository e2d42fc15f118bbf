"""Wants 10 GB at once."""

block = bytearray(10 << 30)


def f(x):
    return len(block)
