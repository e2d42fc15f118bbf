"""Reads and writes through links that lead out of /tmp."""

# test: assert candidate(PATHS)

import os


def f(paths):
    reached = []
    for target in ("/etc/shadow", "/", "/proc/1/root", "/proc/1/cwd", "/proc/self/root/..", *paths):
        os.symlink(target, "/tmp/link")
        for path in ("/tmp/link", "/tmp/link/etc/shadow", "/tmp/link/../../etc/shadow"):
            try:
                with open(path) as file:
                    reached.append(file.read())
            except OSError:
                pass
        try:
            with open("/tmp/link/hostile-file", "w") as file:
                file.write("x")
            reached.append(target)
        except OSError:
            pass
        os.unlink("/tmp/link")
    return reached
