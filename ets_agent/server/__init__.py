"""An OpenAI-compatible HTTP server over `ets_agent.guided.GuidedReasoning`: `create_app` makes it, `serve` runs it."""

from __future__ import annotations

from backends import MissingExtraError

try:
    import fastapi as _fastapi
    import prometheus_client as _prometheus_client
    import uvicorn as _uvicorn
except ImportError as _error:
    raise MissingExtraError(
        "the HTTP server needs FastAPI, uvicorn and prometheus-client: pip install 'ets-agent[server]'"
    ) from _error

from ets_agent._listening import bind
from ets_agent.server.app import create_app
from ets_agent.server.limits import Limits
from ets_agent.server.serve import CLOSING_SECONDS, serve

del _fastapi, _prometheus_client, _uvicorn

__all__ = ["CLOSING_SECONDS", "Limits", "bind", "create_app", "serve"]
