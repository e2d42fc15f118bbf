"""``ets trace``: make the page of a recorded run, and show it."""

from __future__ import annotations

import os
import sys
import tempfile
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from ets_agent.cli import errors, options
from ets_agent.cli.output import emit
from ets_agent.cli.session import session
from ets_agent.errors import ConfigError
from ets_agent.trace_page import MARK, render
from ets_agent.traces import read_trace


def trace_command(
    file: Annotated[Path, typer.Argument(help="A run that `ets solve --trace` recorded.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="PAGE", help="Where to put the page.", show_default="next to the file, ending in .html"
        ),
    ] = None,
    browse: Annotated[
        bool | None,
        typer.Option(
            "--open/--no-open", help="Open the page in the browser.", show_default="where stdout is a terminal"
        ),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Show a recorded run as a page that needs no network; its path goes to stdout."""
    with session(debug=debug):
        run = read_trace(file)  # First, because what is no file may have no name to derive another from.
        page = file.with_suffix(".html") if out is None else out
        _check_replaceable(page)
        _write(page, render(run))
        emit(str(page))
        if browse if browse is not None else sys.stdout.isatty() and _has_screen():
            _open(page)


def _check_replaceable(page: Path) -> None:
    """Refuse to overwrite what is not a page of a run, the trace itself above all."""
    if not page.exists():
        return
    begin = b""
    try:
        if page.is_file():  # Reading from a device would wait for somebody to type.
            with page.open("rb") as file:
                begin = file.read(200)
    except OSError as error:
        raise ConfigError(f"cannot write the page {page}: {error.strerror or error}") from error
    if MARK.encode() not in begin:
        raise ConfigError(f"{page} exists already and is not the page of a run; name another with --out")


def _write(page: Path, text: str) -> None:
    """Write the page for its owner's eyes alone, whole or not at all."""
    part: str | None = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", newline="\n", dir=page.parent, prefix=f".{page.name}.", delete=False
        ) as file:
            part = file.name
            file.write(text)
        os.replace(part, page)
        part = None
    except OSError as error:
        raise ConfigError(
            f"cannot write the page {page}: {error.strerror or error}; name another place with --out"
        ) from error
    finally:
        if part is not None:
            with suppress(OSError):
                os.unlink(part)


def _has_screen() -> bool:
    """Whether a browser can have a window; without one, it would take the terminal over."""
    return sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    )


def _open(page: Path) -> None:
    try:
        opened = webbrowser.open(page.resolve().as_uri())
    except (OSError, webbrowser.Error):
        opened = False
    if not opened:
        errors.warn("no browser was found to open the page in")
