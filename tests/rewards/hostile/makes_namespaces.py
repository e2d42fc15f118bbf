"""Becomes root in a namespace of its own, and mounts."""

# test: assert candidate()

import ctypes
import os


def f():
    libc = ctypes.CDLL(None)
    done = []
    for flags in (0x10000000, 0x10020000, 0x20000000, 0x40000000, 0x02000000, 0x00020000):
        if libc.unshare(flags) == 0:
            done.append(flags)
    if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0 or libc.umount2(b"/tmp", 2) == 0:
        done.append("mount")
    for become in (os.setuid, os.setgid):
        try:
            become(0)
            done.append("root")
        except OSError:
            pass
    return done
