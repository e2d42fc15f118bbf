"""Choose a sandbox that works here. Whether one does is found out by running a program in it, once per process."""

from __future__ import annotations

import contextlib
import functools
import socket
import tempfile
import threading
from collections.abc import Callable
from typing import Literal

from rewards.sandbox.base import Limits, Sandbox
from rewards.sandbox.bubblewrap import Bubblewrap
from rewards.sandbox.command import inside
from rewards.sandbox.docker import Docker
from rewards.sandbox.errors import SandboxError, SandboxUnavailableError
from rewards.sandbox.unsafe import Unsafe

SandboxName = Literal["auto", "bubblewrap", "docker", "unsafe"]

_KINDS: dict[str, Callable[[], Sandbox]] = {"bubblewrap": Bubblewrap, "docker": Docker, "unsafe": Unsafe}
_AUTO = ("bubblewrap", "docker")
_PROBE = Limits(wall_seconds=10.0, cpu_seconds=10.0, processes=8)

_HELP = """\
To run programs that a model wrote, do one of these:
- install bubblewrap (Linux: apt-get install bubblewrap, or the like). Unless it runs as root it needs user namespaces:
  where the sysctl user.max_user_namespaces or kernel.unprivileged_userns_clone is 0, raise it; on Ubuntu since 24.04,
  give /usr/bin/bwrap an AppArmor profile with "userns,", or set kernel.apparmor_restrict_unprivileged_userns=0. Inside
  a Docker container, start that with --security-opt seccomp=unconfined --security-opt systempaths=unconfined, and where
  it runs as root, with --cap-add SYS_ADMIN --security-opt apparmor=unconfined too;
- start a docker daemon that this user may use, and pull an image: docker pull {image};
- say sandbox="unsafe" to run them without protection, in a container or on a machine that you can lose."""


def select(name: SandboxName = "auto") -> Sandbox:
    """Return a sandbox that works on this machine.

    The first call for a name runs a program in the sandbox, which takes a tenth of a second or so for bubblewrap; the
    result, good or bad, is kept for the life of this process.

    Args:
        name: Which one; ``"auto"`` takes bubblewrap or else docker, and never the one without protection.

    Raises:
        ValueError: There is no sandbox of this name.
        SandboxUnavailableError: None works; the message says why and what to do.
    """
    if name not in ("auto", *_KINDS):
        raise ValueError(f"no sandbox is called {name!r}; there are: auto, {', '.join(_KINDS)}")
    reasons = []
    for kind in _AUTO if name == "auto" else (name,):
        with _lock:
            sandbox, reason = _probed(kind)
        if not reason:
            return sandbox
        reasons.append(f"{kind}: {reason}")
    help_ = _HELP.format(image=Docker().image)
    raise SandboxUnavailableError(f"no sandbox works here ({'; '.join(reasons)}).\n{help_}")


_lock = threading.Lock()


@functools.cache
def _probed(kind: str) -> tuple[Sandbox, str]:
    """Return a sandbox, and why it does not work here; "" if it does."""
    sandbox = _KINDS[kind]()
    return sandbox, sandbox.check() or probe(sandbox)


def probe(sandbox: Sandbox) -> str:
    """Return what a sandbox fails to keep a program from, or why it does not start; "" if all is well.

    Of a sandbox that promises no isolation, only the latter is found out.
    """
    with contextlib.ExitStack() as stack:
        secret = stack.enter_context(tempfile.NamedTemporaryFile(prefix="sandbox-probe-"))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        facts = (str(listener.getsockname()[1]), secret.name, str(_PROBE.processes))
        try:
            execution = sandbox.run_here(inside("probe"), *facts, stdin=b"", limits=_PROBE)
        except SandboxError as error:
            return str(error)
    if not sandbox.isolated:
        return ""
    if execution.returncode != 0 or execution.timed_out:
        return f"the probe failed: {execution.stderr or f'exit status {execution.returncode}'}"
    return ", ".join(execution.stdout.decode(errors="replace").split("\n")).strip(", ")
