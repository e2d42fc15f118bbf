"""What runs first in a sandbox: sets limits, gives up rights, then becomes the program.

Sent as ``python -I -S -c LAUNCHER SETTINGS PROGRAM ARGUMENTS``, so it stands alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import struct
import sys
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_TICK = 0.02

# Numbers of system calls: x86-64, ARM64. Denied are memory that no limit counts (anonymous files, System V segments and
# queues), the inspection of other processes, new namespaces, and what programs have no use for but attacks have.
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_DENIED = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "unshare": (272, 97),
    "setns": (308, 268),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}
_CLONE, _CLONE3 = (56, 220), 435
_CLONE_NEWUSER = 0x10000000
_EPERM, _ENOSYS = 1, 38


def main(arguments: list[str]) -> None:
    """Run the program that the arguments hold."""
    settings: dict[str, Any] = json.loads(arguments[1])
    if settings["uid"] is not None:
        os.setgroups([])
        os.setresgid(settings["uid"], settings["uid"], settings["uid"])
        os.setresuid(settings["uid"], settings["uid"], settings["uid"])
    if settings["with_parent"]:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if settings["filter"]:
        _filter_system_calls()
    _limit(settings)
    if settings["guard"]:
        _guard()
    source = arguments[2]
    sys.argv = ["program", *arguments[3:]]
    os.write(1, settings["started"].encode())
    exec(compile(source, "<program>", "exec"), {"__name__": "__main__"})


def _limit(settings: dict[str, Any]) -> None:
    for name in ("CORE", "STACK", "CPU", "AS", "FSIZE", "NOFILE", "NPROC"):
        value, kind = settings["limits"].get(name), getattr(resource, f"RLIMIT_{name}", None)
        if value is None or kind is None:
            continue
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _guard() -> None:
    """Go on in a child process, and end all when it ends, or when nobody reads its output any more.

    The kernel would not do the latter: it lets this process be killed by the death of its parent only if that could
    kill it, and another user without capabilities cannot.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    program = os.fork()
    if program == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        return
    output = select.poll()
    output.register(1, 0)
    while not output.poll(0):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == program:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
        if pid == 0:
            signal.sigtimedwait({signal.SIGCHLD}, _TICK)
    os._exit(1)


def _filter_system_calls() -> None:
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise SystemExit(f"system calls cannot be filtered on {machine}")
    instructions = _instructions(*_ARCHITECTURES[machine])
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in instructions))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(instructions), ctypes.addressof(code)))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_SECCOMP, 2, ctypes.addressof(program))


def _instructions(column: int, architecture: int) -> list[tuple[int, int, int, int]]:
    """Return the filter in the kernel's (code, jump if true, jump if false, operand)."""
    load, equal, at_least, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill = 0x7FFF0000, 0x80000000

    def deny(error: int) -> tuple[int, int, int, int]:
        return (end, 0, 0, 0x00050000 | error)

    # Offsets in the kernel's record of a call: 0 is its number, 4 the architecture, 16 the first argument's lower half.
    rules = [(load, 0, 0, 4), (equal, 1, 0, architecture), (end, 0, 0, kill), (load, 0, 0, 0)]
    rules += [(at_least, 0, 1, 0x40000000), deny(_ENOSYS)]  # The x32 variant of x86-64 has other numbers.
    for numbers in _DENIED.values():
        rules += [(equal, 0, 1, numbers[column]), deny(_EPERM)]
    rules += [(equal, 0, 1, _CLONE3), deny(_ENOSYS)]  # Its flags cannot be seen from here; libraries fall back.
    rules += [(equal, 0, 3, _CLONE[column]), (load, 0, 0, 16), (any_bit, 0, 1, _CLONE_NEWUSER), deny(_EPERM)]
    return [*rules, (end, 0, 0, allow)]


def _prctl(option: int, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    padded = [*arguments, 0, 0, 0, 0][:4]
    if libc.prctl(option, *(ctypes.c_ulong(each) for each in padded)) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(sys.argv)
