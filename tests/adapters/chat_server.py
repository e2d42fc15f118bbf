"""A server that speaks OpenAI's chat completions and Responses on loopback, and whose model is a script.

It stands for an agent's own model: it calls tools with arguments that the script holds, and says something at the end.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias

from tests.fake_server.server import serve
from tests.fake_server.wire import read

Call: TypeAlias = tuple[str, Any]
"""A tool's name and its arguments, as an object, or as the text that the model wrote."""
Step: TypeAlias = Sequence[Call] | Callable[[list[dict[str, Any]]], str]
"""What the model does next: it calls tools, or says something about all that was said before."""


class ChatServer:
    """Serves one script at a time.

    Attributes:
        script: The steps that are left.
        requests: The bodies of all requests.
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        self.script: list[Step] = []
        self.requests: list[dict[str, Any]] = []
        self._stop: Callable[[], None] = lambda: None

    @property
    def base_url(self) -> str:
        """What OpenAI's SDK takes as ``base_url``."""
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> Self:
        """Serve from a thread with an event loop of its own."""
        listener = socket.create_server(("127.0.0.1", 0))
        self._port = listener.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._main(listener, ready),), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self._stop()
        self._thread.join(10)

    async def _main(self, listener: socket.socket, ready: threading.Event) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(stop.set)  # type: ignore[assignment, return-value]
        await serve(self, listener, stop, ready.set)  # type: ignore[arg-type]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, as ASGI has it."""
        body = json.loads(await read(receive) or b"{}")
        self.requests.append(body)
        step = self.script.pop(0)
        answer = _chat(body, step) if scope["path"].endswith("/chat/completions") else _response(body, step)
        payload = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(payload)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": payload})


def _chat(body: dict[str, Any], step: Step) -> dict[str, Any]:
    if callable(step):
        message = {"role": "assistant", "content": step(body["messages"])}
    else:
        calls = [
            {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": _text(arguments)}}
            for number, (name, arguments) in enumerate(step)
        ]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop" if callable(step) else "tool_calls"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def _response(body: dict[str, Any], step: Step) -> dict[str, Any]:
    output: list[dict[str, Any]] = [{"type": "reasoning", "id": "rs_1", "summary": []}]
    if callable(step):
        text = {"type": "output_text", "text": step(body["input"]), "annotations": []}
        output.append({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [text]})
    else:
        output += [
            {
                "type": "function_call",
                "id": f"fc_{number}",
                "call_id": f"call_{number}",
                "name": name,
                "arguments": _text(arguments),
                "status": "completed",
            }
            for number, (name, arguments) in enumerate(step)
        ]
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": body["model"],
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": body["tools"],
        "status": "completed",
    }


def _text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments)
