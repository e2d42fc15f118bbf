"""The command ``ets``: a thin translation of options into calls of the library, and of results into text."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; always ends by `SystemExit`."""
    try:
        # Imported here, because Ctrl-C may be faster than the imports.
        from ets_agent.cli.app import app
        from ets_agent.cli.output import prepare_streams

        prepare_streams()
        app(prog_name="ets")
    except KeyboardInterrupt:
        sys.exit(130)
