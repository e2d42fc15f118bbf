"""The fake server as an ASGI application: which path does what, who may ask, and what is noted about it."""

from __future__ import annotations

import hmac
import json
import math
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from email.utils import formatdate
from typing import Any

from tests.fake_server.answers import Answers
from tests.fake_server.faults import GENERATION, Asked, Fault, FaultPlan
from tests.fake_server.models import Model
from tests.fake_server.profiles import PROFILES, ApiError, Profile, ProfileName
from tests.fake_server.records import Record, Records
from tests.fake_server.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    check_messages,
    parse,
)
from tests.fake_server.stream import events
from tests.fake_server.wire import (
    ClientGoneError,
    Headers,
    Receive,
    Send,
    encode,
    gone,
    read,
    send_part,
    send_whole,
    until_gone,
)

VERSION = "0.32.0"
"""Of the vLLM that is imitated."""
STATS = "/fake/stats"
"""Where a server in another process tells `Records.stats`; such requests are not recorded."""
_CREATED = 1_700_000_000


class FakeApp:
    """The application.

    Args:
        model: What it serves.
        profile: Which kind of server to imitate.
        processed_logprobs: Whether log-probabilities are of the sampled distribution, or of the model's own.
        max_logprobs: Most alternatives at each position, -1 for the whole vocabulary; by default the profile's.
        end_in_logprobs: Whether the token that ends a response has a log-probability; by default the profile's.
        most_tokens: Most tokens of a response, whatever is asked for.
        reasoning: So many tokens at the beginning of a chat's answer are reasoning, which is not part of its content.
        api_key: What clients must send as bearer key; None lets everybody in.
        faults: What goes wrong on purpose; another plan may take its place at any time.
    """

    def __init__(
        self,
        model: Model,
        *,
        profile: ProfileName = "vllm",
        processed_logprobs: bool = False,
        max_logprobs: int | None = None,
        end_in_logprobs: bool | None = None,
        most_tokens: int | None = None,
        reasoning: int = 0,
        api_key: str | None = None,
        faults: FaultPlan | None = None,
    ) -> None:
        """Lay out the paths."""
        if profile not in PROFILES:
            raise ValueError(f"no profile is called {profile!r}; allowed: {', '.join(PROFILES)}")
        chosen = PROFILES[profile]
        if max_logprobs is not None:
            chosen = replace(chosen, max_logprobs=max_logprobs)
        if end_in_logprobs is not None:
            chosen = replace(chosen, end_in_logprobs=end_in_logprobs)
        self.profile: Profile = chosen
        self.model = model
        self.faults = faults
        self.records = Records()
        self.failures: list[Exception] = []
        """Mistakes of this server's own; there must be none."""
        self._answers = Answers(
            model=model, profile=chosen, processed=processed_logprobs, most_tokens=most_tokens, reasoning=reasoning
        )
        self._key = api_key
        self._routes: dict[str, tuple[str, Callable[[Any, str], Awaitable[Any]]]] = {
            "/v1/models": ("GET", self._models),
            "/health": ("GET", self._health),
        }
        if chosen.completions:
            self._routes["/v1/completions"] = ("POST", self._completion)
        if chosen.chat:
            self._routes["/v1/chat/completions"] = ("POST", self._chat)
        if chosen.vllm:
            self._routes["/version"] = ("GET", self._version)
            self._routes["/tokenize"] = ("POST", self._tokenize)
            self._routes["/detokenize"] = ("POST", self._detokenize)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http"
        raw = await read(receive)
        if raw is None:
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if scope["path"] == STATS:
            await send_whole(send, 200, [encode(self.records.stats())], [])
            return
        body, problem = None, None
        if scope["method"] == "POST":
            try:
                body = json.loads(raw)
            except ValueError as error:
                problem = f"JSON decode error: {error}"
        record = self.records.begin(method=scope["method"], path=scope["path"], headers=headers, body=body)
        try:
            await self._serve(record, headers, problem, receive, send)
        except ClientGoneError:
            record.aborted = True
        finally:
            self.records.end(record)

    async def _serve(
        self, record: Record, headers: dict[str, str], problem: str | None, receive: Receive, send: Send
    ) -> None:
        request_id = headers.get("x-request-id") or uuid.uuid4().hex
        extra = [(b"x-request-id", request_id.encode("latin-1"))]
        fault = None
        if self.faults is not None:
            fault = self.faults.decide(Asked(index=record.index, path=record.path, body=record.body))
        if fault is not None:
            record.fault = fault.kind
            if fault.error is not None:
                status, message = fault.error
                record.status = status
                body = ApiError(status, message, kind=fault.kind).body(self.profile)
                await send_whole(send, status, [encode(body)], [*extra, *_retry_after(fault)])
                return
            if fault.kind == "hang":
                await gone(receive)
                raise ClientGoneError
            if fault.kind == "slow":
                await until_gone(fault.wait(), receive)
        work = self._answer(record, headers, problem, request_id)
        status, answer = await (work if self.model.instant else until_gone(work, receive))
        record.status = status
        if fault is None:
            await send_whole(send, status, _parts(record, answer), extra, stream=_is_stream(record))
        else:
            await self._spoil(fault, record, answer, receive, send, extra)

    async def _spoil(
        self, fault: Fault, record: Record, answer: Any, receive: Receive, send: Send, extra: Headers
    ) -> None:
        """Send an answer with a fault in it; note none where it made no difference."""
        assert record.status is not None
        parts, stream = _parts(record, answer), _is_stream(record)
        if fault.kind in ("reset", "truncated"):
            reset = fault.kind == "reset"
            await send_part(send, receive, record.status, parts, extra, sent=fault.sent, reset=reset, stream=stream)
            return
        spoiled = parts
        if fault.kind == "malformed_json":
            whole = b"".join(parts)
            spoiled = [whole[: len(whole) // 2]]
        elif record.status == 200 and isinstance(answer, dict) and "choices" in answer:
            spoiled = _parts(record, fault.alter(answer))
        if spoiled == parts and fault.kind != "slow":
            record.fault = None
        await send_whole(send, record.status, spoiled, extra, stream=stream)

    async def _answer(
        self, record: Record, headers: dict[str, str], problem: str | None, request_id: str
    ) -> tuple[int, Any]:
        """Return the status and the body's JSON; None is an empty body."""
        try:
            self._check_key(record.path, headers)
            if record.path not in self._routes:
                return 404, self._no_such_path(record)
            method, handler = self._routes[record.path]
            if record.method != method:
                return 405, {"detail": "Method Not Allowed"}
            if method == "POST":
                if not headers.get("content-type", "").startswith("application/json"):
                    raise ApiError(
                        400, "Unsupported Media Type: Only 'application/json' is allowed", kind="Bad Request"
                    )
                if problem is not None:
                    raise ApiError(400, problem, kind="Bad Request", param="body")
            return 200, await handler(record.body, request_id)
        except ApiError as error:
            if error.status == 401 and self.profile.vllm:
                return 401, {"error": "Unauthorized"}
            return error.status, error.body(self.profile)
        except Exception as error:
            self.failures.append(error)
            return 500, ApiError(500, f"the fake server itself failed: {error!r}").body(self.profile)

    def _check_key(self, path: str, headers: dict[str, str]) -> None:
        if self._key is None or not path.startswith("/v1"):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(key.encode(), self._key.encode()):
            return
        if not key:
            message = "You didn't provide an API key. You need to provide your API key in an Authorization header."
            raise ApiError(401, message)
        shown = f"{key[:3]}{'*' * max(0, len(key) - 7)}{key[-4:]}" if len(key) > 7 else "*" * len(key)
        raise ApiError(401, f"Incorrect API key provided: {shown}.", code="invalid_api_key")

    def _no_such_path(self, record: Record) -> dict[str, Any]:
        if self.profile.vllm:
            return {"detail": "Not Found"}
        return ApiError(404, f"Invalid URL ({record.method} {record.path})").body(self.profile)

    def _check_model(self, name: str | None) -> None:
        if name == self.model.name or (self.profile.vllm and not name):
            return
        if self.profile.vllm:
            message = f"The model `{name}` does not exist. Valid aliases: {self.model.name}."
            raise ApiError(404, message, param="model", kind="NotFoundError")
        if not name:
            raise ApiError(400, "you must provide a model parameter")
        message = f"The model `{name}` does not exist or you do not have access to it."
        raise ApiError(404, message, code="model_not_found")

    async def _completion(self, body: Any, request_id: str) -> dict[str, Any]:
        request: CompletionRequest = parse(CompletionRequest, body, self.profile)
        request.check(self.profile)
        self._check_model(request.model)
        return await self._answers.completion(request, request_id)

    async def _chat(self, body: Any, request_id: str) -> dict[str, Any]:
        request: ChatRequest = parse(ChatRequest, body, self.profile)
        request.check(self.profile)
        self._check_model(request.model)
        return await self._answers.chat(request, request_id)

    async def _tokenize(self, body: Any, request_id: str) -> dict[str, Any]:
        request: TokenizeRequest = parse(TokenizeRequest, body, self.profile)
        self._check_model(request.model)
        if request.messages is not None:
            check_messages(request.messages, request.continue_final_message, request.add_generation_prompt)
            ids = self.model.render(
                [{"role": message.role, "content": message.content} for message in request.messages],
                generation_prompt=request.add_generation_prompt,
                open_end=request.continue_final_message,
            )
        else:
            assert request.prompt is not None
            ids = self.model.encode(request.prompt, special=request.add_special_tokens is not False)
        names = [self.model.token_name(token) for token in ids] if request.return_token_strs else None
        return {"count": len(ids), "max_model_len": self.model.max_model_len, "tokens": ids, "token_strs": names}

    async def _detokenize(self, body: Any, request_id: str) -> dict[str, Any]:
        request: DetokenizeRequest = parse(DetokenizeRequest, body, self.profile)
        self._check_model(request.model)
        return {"prompt": self.model.decode(request.tokens, skip_special=False)}

    async def _models(self, body: Any, request_id: str) -> dict[str, Any]:
        card: dict[str, Any] = {"id": self.model.name, "object": "model", "created": _CREATED, "owned_by": "system"}
        if self.profile.vllm:
            card |= {
                "created": int(time.time()),
                "owned_by": "vllm",
                "root": self.model.name,
                "parent": None,
                "max_model_len": self.model.max_model_len,
                "permission": [],
            }
        return {"object": "list", "data": [card]}

    async def _health(self, body: Any, request_id: str) -> None:
        return None

    async def _version(self, body: Any, request_id: str) -> dict[str, Any]:
        return {"version": VERSION}


def _retry_after(fault: Fault) -> Headers:
    if fault.retry_after is None:
        return []
    if fault.as_date:
        return [(b"retry-after", formatdate(math.ceil(time.time() + fault.retry_after), usegmt=True).encode())]
    return [(b"retry-after", f"{fault.retry_after:g}".encode())]


def _is_stream(record: Record) -> bool:
    """Whether the answer is a stream; errors never are."""
    return record.status == 200 and record.path in GENERATION and record.body.get("stream") is True


def _parts(record: Record, answer: Any) -> list[bytes]:
    if not _is_stream(record):
        return [encode(answer)]
    return events(answer, usage=bool((record.body.get("stream_options") or {}).get("include_usage")))
