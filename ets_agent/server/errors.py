"""Errors in OpenAI's format, whatever went wrong: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import http
import logging
import math
from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from backends import (
    BackendClosedError,
    BackendError,
    ContextLengthError,
    EndpointError,
    QueueFullError,
)
from ets_agent.guided import NoPlaceError, RequestError
from ets_agent.server.replies import ErrorBody, ErrorReply

_log = logging.getLogger(__name__)

CLIENT_GONE = 499
"""Status that is noted where nobody is left to be told of one."""
QUEUE_RETRY_AFTER = 1.0
"""Seconds after which a caller may try again where all places are taken; how long answers take is not known."""


CLOSE = {"Connection": "close"}
"""Headers of answers after which nothing more is read: what is left of a body must not be taken for a request."""


class ApiError(Exception):
    """What a caller is told.

    Args:
        status: HTTP status.
        message: What is wrong and what is allowed.
        param: The parameter that it is about.
        code: A word for programs.
        retry_after: Seconds after which it is worth trying again.
        headers: More headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Keep everything."""
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.kind = _kind(status)
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))

    @property
    def body(self) -> str:
        """The error as JSON."""
        error = ErrorBody(message=str(self), type=self.kind, param=self.param, code=self.code)
        return ErrorReply(error=error).model_dump_json()

    def response(self) -> Response:
        """Return the error as a response."""
        return Response(self.body, self.status, headers=self.headers, media_type="application/json")


class ClientGoneError(Exception):
    """The client has hung up, so its work was ended."""


def translate(error: Exception) -> ApiError:
    """Return what a caller is told of an error.

    What is the caller's doing is told in full. What is not is logged, and told without details, which may name
    machines that are nobody's business.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        too_long = isinstance(error.__cause__, ContextLengthError)
        return ApiError(400, str(error), code="context_length_exceeded" if too_long else None)
    if isinstance(error, QueueFullError):
        return ApiError(429, "all places are taken; try again later", code="queue_full", retry_after=QUEUE_RETRY_AFTER)
    if isinstance(error, NoPlaceError):
        text = f"{error}; try again later, or allow more time"
        return ApiError(503, text, code="no_place", retry_after=QUEUE_RETRY_AFTER)
    if isinstance(error, HTTPException):
        return _http_error(error)
    if isinstance(error, RequestValidationError):
        return ApiError(400, "the address has a part that is not allowed")
    if isinstance(error, BackendClosedError):
        return shutting_down()
    if isinstance(error, EndpointError):
        _log.error("the model's server failed: %s", error)
        return ApiError(502, "the model's server failed", code="model_error", retry_after=error.retry_after)
    if isinstance(error, BackendError):
        _log.error("the model failed: %s", error)
        return ApiError(500, "the model failed", code="model_error")
    _log.error("a mistake of the server", exc_info=error)
    return ApiError(500, "the server made a mistake", code="internal_error")


def shutting_down() -> ApiError:
    """Return what is told while the server is being stopped."""
    text = "the server is shutting down"
    return ApiError(503, text, code="shutting_down", retry_after=QUEUE_RETRY_AFTER, headers=CLOSE)


def install(app: FastAPI) -> None:
    """Have an application tell all its errors in this format."""

    async def tell(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 404:
            return ApiError(404, f"there is no {request.url.path!r:.200}", code="not_found").response()
        return translate(error).response()

    async def nobody(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    for kind in (ApiError, BackendError, RequestError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, tell)
    app.add_exception_handler(ClientGoneError, nobody)


def _http_error(error: HTTPException) -> ApiError:
    message = {405: "this address does not know the method"}.get(error.status_code, str(error.detail))
    code = http.HTTPStatus(error.status_code).phrase.lower().replace(" ", "_").replace("-", "_")
    return ApiError(error.status_code, message, code=code, headers=error.headers)


def _kind(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
