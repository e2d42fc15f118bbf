"""Writes wherever it can but in /tmp, and says where that was."""

# test: assert candidate(PATHS)

import os
import sys


def f(paths):
    written = []
    for folder in (
        "/",
        "/usr",
        "/usr/bin",
        "/etc",
        "/var",
        "/dev",
        "/proc",
        "/sys",
        "/root",
        "/home",
        sys.prefix,
        *paths,
    ):
        try:
            with open(f"{folder}/hostile-file", "w") as file:
                file.write("x")
            written.append(folder)
        except OSError:
            pass
    for path in ("/proc/sys/kernel/hostname", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", os.__file__):
        try:
            with open(path, "w") as file:
                file.write("x")
            written.append(path)
        except OSError:
            pass
    return written
