"""The contract of a sandbox: run one untrusted Python program within limits, and leave nothing behind."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from subprocess import Popen

from rewards.sandbox import process

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run may use.

    Attributes:
        wall_seconds: From the start of the program, not of the sandbox, to its end.
        cpu_seconds: Of each process; whole seconds, rounded up.
        memory_bytes: Address space of each process.
        processes: Processes and threads at one time, all together.
        file_bytes: Largest file, and size of /tmp.
        output_bytes: Most that is read from stdout; a program that writes more is killed.
        open_files: Of each process.
    """

    wall_seconds: float = 10.0
    cpu_seconds: float = 10.0
    memory_bytes: int = 512 * MIB
    processes: int = 32
    file_bytes: int = 16 * MIB
    output_bytes: int = MIB
    open_files: int = 64

    def __post_init__(self) -> None:
        """Refuse limits that are none.

        Raises:
            ValueError: A limit is not positive and finite.
        """
        for name in self.__slots__:
            if not (0 < getattr(self, name) < math.inf):
                raise ValueError(f"{name} must be positive and finite, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a run ended.

    Attributes:
        returncode: Exit status of the program; negative or above 128 where a signal ended it.
        stdout: What it wrote, up to the limit.
        stderr: The end of what it wrote to stderr, for people.
        timed_out: Whether it was killed for taking too long.
        overflowed: Whether it was killed for writing too much.
        seconds: From the start of the program to its end.
    """

    returncode: int
    stdout: bytes
    stderr: str
    timed_out: bool
    overflowed: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start the process that a sandbox consists of, and how to end it.

    Attributes:
        argv: The command, with an absolute path.
        kill: Kills all that the command has started, and the command; also called when that has ended by itself.
        environment: The command's whole environment.
        folder: Its working directory.
    """

    argv: Sequence[str]
    kill: Callable[[Popen[bytes]], None]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = "/"


class Sandbox(ABC):
    """Runs Python programs that nobody trusts.

    A program is the text of a script for ``python -I -S -c``. What a sandbox promises, where its own docstring does not
    take it back:

    - The program sees no network, no process but its own, no environment variable, no file of the user; the system is
      read-only, /tmp is private, empty and limited.
    - `Limits` hold, by the kernel, from before the first line of the program.
    - When `run` returns or raises, cancelled or not, every process of the run is dead, and its files and mounts are
      gone. The same holds when this Python process is killed.
    - Whatever the program does is an `Execution`. A `SandboxError` is raised only where the program never began.

    `run` works from any event loop and thread. Runs beyond the number of processors wait for their turn; waiting does
    not count against limits.
    """

    name: str = ""
    """What `select` calls it."""

    isolated: bool = True
    """Whether the program has a process space of its own, in which it is the only one."""

    own_interpreter: bool = True
    """Whether programs are run by the interpreter that runs this one."""

    @abstractmethod
    def check(self) -> str:
        """Return why this sandbox cannot work here, as far as that is seen without running a program; "" if it may."""

    @abstractmethod
    def launch(
        self, source: str, arguments: Sequence[str], limits: Limits, *, first: bool = False
    ) -> AbstractContextManager[Launch]:
        """Return how to run a program behind the launcher; leaving the context frees what it needed."""

    async def run(
        self, source: str, *arguments: str, stdin: bytes = b"", limits: Limits | None = None, first: bool = False
    ) -> Execution:
        """Run a program to its end.

        Args:
            source: The program's text, at most 128 KiB of it.
            arguments: Its ``sys.argv[1:]``.
            stdin: All of its standard input.
            limits: What it may use.
            first: Whether the program itself is the first of its process space, so that its children can neither kill
                nor stop it. It then has to end by itself when nobody reads its stdout any more.

        Raises:
            SandboxError: The program was not started.
        """
        return await process.submit(
            self.run_here, source, *arguments, stdin=stdin, limits=limits or Limits(), first=first
        )

    def run_here(
        self,
        source: str,
        *arguments: str,
        stdin: bytes,
        limits: Limits,
        first: bool = False,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Execution:
        """Run a program in this thread, without a turn; ``cancelled`` is asked now and then, and ends the run.

        Raises:
            SandboxError: The program was not started.
        """
        with self.launch(source, arguments, limits, first=first) as launch:
            return process.run(launch, stdin=stdin, limits=limits, cancelled=cancelled, name=self.name)
