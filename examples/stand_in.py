"""A stand-in for an agent's own model, so that the examples run offline.

It does what any model would that has the tool: it hands the question on, and then says what came back. The examples for
frameworks with test models of their own take its words only; for those that want a server, `serve` speaks just enough
of OpenAI's chat completions. With a real model, nothing of this file is needed.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def arguments(question: str) -> dict[str, Any]:
    """Return the arguments of a call, as models give them in strict mode: all of them, null where they want nothing."""
    return {"question": question, "reward": None, "effort": "medium", "max_tokens": None, "timeout": None}


def say(told: str) -> str:
    """Return what the model says at the end, given what the tool told it."""
    answer = json.loads(told)
    return f"The answer is {answer['answer']} (confidence {answer['confidence']:.2f})."


@contextmanager
def serve() -> Iterator[str]:
    """Serve the stand-in on loopback; yields the ``base_url``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        last = body["messages"][-1]
        if last["role"] == "tool":
            message = {"role": "assistant", "content": say(last["content"])}
        else:
            name = body["tools"][0]["function"]["name"]
            function = {"name": name, "arguments": json.dumps(arguments(last["content"]))}
            call = {"id": "call_1", "type": "function", "function": function}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        reason = "stop" if last["role"] == "tool" else "tool_calls"
        answer = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        }
        payload = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
