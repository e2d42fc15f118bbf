"""Ends with success when it is asked."""

import os


def f(x):
    os._exit(0)
