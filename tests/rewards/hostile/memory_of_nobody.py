"""Takes memory that belongs to no process: shared segments, anonymous files, pipes, files in memory."""

import contextlib
import ctypes
import mmap
import os


def f(x):
    libc = ctypes.CDLL(None)
    while True:
        libc.shmget(0, 100 << 20, 0o1600)
        for place in ("/dev/shm", "/tmp"):
            try:
                with open(f"{place}/{os.urandom(4).hex()}", "wb") as file:
                    file.write(bytes(1 << 20))
            except OSError:
                pass
        with contextlib.suppress(OSError):
            mmap.mmap(os.memfd_create("x"), 1 << 20)
