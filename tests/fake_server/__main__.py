"""``python -m tests.fake_server``: serves until its input ends, SIGTERM or Ctrl-C; prints its address when ready."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import socket
import sys
import threading
from typing import get_args

from tests.fake_server.app import FakeApp
from tests.fake_server.faults import FaultPlan
from tests.fake_server.models import Model
from tests.fake_server.profiles import ProfileName
from tests.fake_server.scripted import ScriptedModel
from tests.fake_server.server import loop_factory, serve

_RESPONSES = {
    "3 + 4 = 7 so there are 7 apples in the basket now #### 7": 6.0,
    "3 + 4 = 8 so there are 8 apples in the basket now #### 8": 2.0,
    "There are 3 apples and 4 more , which makes 7 apples in all #### 7": 3.0,
    "There are 3 apples and 4 more , which makes 12 apples in all #### 12": 1.0,
}
"""About fourteen words each."""


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m tests.fake_server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 finds a free one")
    parser.add_argument("--model", default="scripted", help="scripted, or an embedded model such as tiny/qwen3-small")
    parser.add_argument("--responses", type=json.loads, help="what a scripted model answers: JSON, a list or weights")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that each draw of a scripted model takes")
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--profile", choices=get_args(ProfileName), default="vllm")
    parser.add_argument("--processed-logprobs", action="store_true")
    parser.add_argument("--max-logprobs", type=int)
    parser.add_argument("--api-key")
    parser.add_argument("--fault-rate", type=float, default=0.0, help="share of requests that get some fault")
    parser.add_argument("--fault-seed", type=int, default=0)
    given = parser.parse_args()
    app = FakeApp(
        _model(given),
        profile=given.profile,
        processed_logprobs=given.processed_logprobs,
        max_logprobs=given.max_logprobs,
        api_key=given.api_key,
        faults=FaultPlan.random(given.fault_rate, seed=given.fault_seed) if given.fault_rate else None,
    )
    listener = socket.create_server((given.host, given.port), backlog=4096)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(app, listener))


def _model(given: argparse.Namespace) -> Model:
    if given.model == "scripted":
        return ScriptedModel(
            given.responses or _RESPONSES, max_model_len=given.max_model_len or 4096, delay=given.delay
        )
    import torch

    from tests.fake_server.local import LocalModel

    torch.set_num_threads(1)
    return LocalModel.load(given.model, max_model_len=given.max_model_len)


async def _serve(app: FakeApp, listener: socket.socket) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def watch() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(stop.set)

    if not sys.stdin.isatty():
        threading.Thread(target=watch, daemon=True).start()
    host, port = listener.getsockname()[:2]
    await serve(app, listener, stop, lambda: print(f"http://{host}:{port}", flush=True))
    await app.model.aclose()


if __name__ == "__main__":
    main()
