"""The sandbox of docker: a container for each run, where there is a daemon."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence

from rewards.sandbox.base import Launch, Limits, Sandbox
from rewards.sandbox.command import command
from rewards.sandbox.process import DEATH_SECONDS

IMAGE = "python:{}.{}-slim"
"""The image, by this interpreter's version."""

_SHARED_MEMORY = 4 << 20


class Docker(Sandbox):
    """Runs programs with ``docker run``: no network, a read-only container, no capability, nothing mounted.

    The daemon must have the image already; nothing is pulled. Packages of this environment are not there, only those of
    the image. A run survives this process for as long as its own time limit, as the daemon is its parent.
    """

    name = "docker"
    own_interpreter = False

    def __init__(self, executable: str | None = None, image: str | None = None) -> None:
        """Find ``docker``, on the PATH by default.

        Args:
            executable: Path of the client.
            image: An image with ``python3``; by default the official one of this Python version.
        """
        self._executable = executable or shutil.which("docker")
        self.image = image or IMAGE.format(*sys.version_info)

    def check(self) -> str:
        """Return what is missing."""
        return "" if self._executable else "docker is not installed"

    @contextlib.contextmanager
    def launch(self, source: str, arguments: Sequence[str], limits: Limits, *, first: bool = False) -> Iterator[Launch]:
        """Return the ``docker run`` command; the container is removed by the daemon."""
        docker, name = str(self._executable), f"sandbox-{secrets.token_hex(8)}"
        # The kernel would count the processes of all containers together; docker counts those of each.
        inside = command("python3", source, arguments, limits, guarded=not first, counted=False)
        options = {
            "--name": name,
            "--pull": "never",
            "--network": "none",
            "--memory": str(limits.memory_bytes),
            "--memory-swap": str(limits.memory_bytes),
            "--pids-limit": str(limits.processes + (not first)),
            "--cpus": "1",
            "--cap-drop": "ALL",
            "--security-opt": "no-new-privileges",
            "--user": "65534:65534",
            "--tmpfs": f"/tmp:rw,nosuid,nodev,mode=1777,size={limits.file_bytes}",
            "--shm-size": str(_SHARED_MEMORY),
            "--hostname": "sandbox",
            "--workdir": "/tmp",
            "--log-driver": "none",
        }
        flat = [text for pair in options.items() for text in pair]
        argv = [docker, "run", "--rm", "--interactive", "--read-only", *flat, self.image, *inside]

        def kill(client: subprocess.Popen[bytes]) -> None:
            if client.poll() is None:
                client.kill()  # First, so that it cannot start the container after all.
                client.wait()
                _remove(docker, name)

        yield Launch(argv=argv, kill=kill, environment=_environment())


def _environment() -> dict[str, str]:
    """Return what tells the client where its daemon is; nothing of it reaches a container."""
    return {name: value for name, value in os.environ.items() if name.startswith("DOCKER_") or name in ("HOME", "PATH")}


def _remove(docker: str, name: str) -> None:
    """Kill a container and see it gone."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [docker, "rm", "--force", name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            timeout=DEATH_SECONDS,
            check=False,
        )
