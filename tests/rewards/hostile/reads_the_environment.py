"""Returns environments: its own, and those of other processes."""

# test: assert "SECRET_TOKEN" in candidate()

import glob
import os


def f():
    found = str(os.environ)
    for path in glob.glob("/proc/*/environ"):
        try:
            with open(path) as file:
                found += file.read()
        except OSError:
            pass
    return found
