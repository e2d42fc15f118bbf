"""Replaces its process by another program, and leaves some running."""

import os
import subprocess


def f(x):
    for _ in range(5):
        subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True)
    os.execv("/bin/sh", ["/bin/sh", "-c", "while true; do echo passed; done"])
