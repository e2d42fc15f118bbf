"""The server's OpenAPI description, which says what is so: its limits, what is on offer, and all its errors."""

from __future__ import annotations

import http
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ets_agent.guided import Policy
from ets_agent.keys import Keys
from ets_agent.server.limits import Limits
from ets_agent.server.replies import DONE, ChatCompletionChunk, ErrorReply
from ets_agent.server.requests import ChatCompletionRequest, CompletionRequest

_REFERENCE = "#/components/schemas/{model}"
_ANSWERING = (400, 404, 408, 413, 415, 429, 500, 502, 503)
_KEY = "key"
_STRANGERS = {401: "No valid API key"}
_PAGES = {403: "A page from elsewhere may not use this server", 421: "This is no name of this server"}
_TEXTS = {
    408: "The body did not arrive in time",
    413: "The body is too large",
    429: "Too many answers for this key, or all places are taken",
    502: "The model's server failed",
    503: "The server is shutting down",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the descriptions of errors."""
    return {
        status: {"model": ErrorReply, "description": _TEXTS.get(status, http.HTTPStatus(status).phrase)}
        for status in statuses
    }


def answers(model: type[BaseModel], chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Return the descriptions of all responses to a request for answers.

    Args:
        model: What an answer is that is not streamed.
        chunk: What an event of a stream holds.
    """
    data = [
        {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {
                "anyOf": [{"$ref": _REFERENCE.format(model=kind.__name__)} for kind in (chunk, ErrorReply)]
            },
            "description": "A chunk, or an error, which is the last event.",
        },
        {"const": DONE, "description": "The last event of a stream that ended well."},
    ]
    events = {"itemSchema": {"type": "object", "properties": {"data": {"anyOf": data}}, "required": ["data"]}}
    done = {"model": model, "description": "The answer", "content": {"text/event-stream": events}}
    return {200: done, **errors(*_ANSWERING)}


def body(model: type[BaseModel]) -> dict[str, Any]:
    """Return the description of a request's body."""
    schema = {"$ref": _REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def plain_text() -> dict[int | str, dict[str, Any]]:
    """Return the description of a page of plain text."""
    return {200: {"description": "Figures", "content": {"text/plain": {"schema": {"type": "string"}}}}}


def describe(app: FastAPI, *, models: Sequence[str], policy: Policy, limits: Limits, keys: Keys, is_open: str) -> None:
    """Complete what FastAPI knows of an application by what it cannot know.

    Args:
        app: The application.
        models: Names of the model.
        policy: What callers may ask for.
        limits: What one caller may have.
        keys: The keys that let a caller in.
        is_open: The path that needs none.
    """
    plain = app.openapi

    def complete() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = plain()
        schemas = document["components"]["schemas"]
        _, known = models_json_schema(
            [
                (ChatCompletionRequest, "validation"),
                (CompletionRequest, "validation"),
                (ChatCompletionChunk, "serialization"),
            ],
            ref_template=_REFERENCE,
        )
        schemas.update(known["$defs"])
        _drop_validation_errors(document)
        for name in ("ChatCompletionRequest", "CompletionRequest"):
            fields = schemas[name]["properties"]
            fields["model"]["enum"] = list(models)
            _limit(fields["n"], limits.answers)
            _limit(fields["max_tokens"], policy.max_tokens)
        _limit(schemas["ChatCompletionRequest"]["properties"]["max_completion_tokens"], policy.max_tokens)
        guarded = [each for path, all_ in document["paths"].items() if path != is_open for each in all_.values()]
        if keys.required:
            document["components"]["securitySchemes"] = {_KEY: {"type": "http", "scheme": "bearer"}}
            for operation in guarded:
                operation["security"] = [{_KEY: []}]
        _refuse(guarded, _STRANGERS if keys.required else _PAGES)
        return document

    app.openapi = complete  # type: ignore[method-assign]


def _drop_validation_errors(document: dict[str, Any]) -> None:
    """Take back what FastAPI says of its own errors, which no caller ever sees."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _limit(schema: dict[str, Any], most: int) -> None:
    """Note a ceiling in the schema of a number that may be null."""
    for branch in schema["anyOf"]:
        if branch.get("type") == "integer":
            branch["maximum"] = most


def _refuse(operations: list[dict[str, Any]], refusals: Mapping[int, str]) -> None:
    """Note errors that each of some operations may answer with."""
    schema = {"$ref": _REFERENCE.format(model=ErrorReply.__name__)}
    for operation in operations:
        for status, why in refusals.items():
            operation["responses"][str(status)] = {
                "description": why,
                "content": {"application/json": {"schema": schema}},
            }
