"""What the HTTP server does unless it is told otherwise, for those who say so without loading it."""

from __future__ import annotations

MAX_ANSWERS = 8
"""Most answers of one request."""
MAX_BODY = 1_048_576
"""Most bytes of a request's body."""
SHUTDOWN_SECONDS = 30.0
"""How long answers in the making are given when the server is stopped."""
