"""The application: which address does what, and who may ask."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ets_agent import __version__
from ets_agent._hosts import Names, own_names
from ets_agent.guided import GuidedReasoning
from ets_agent.keys import Caller, Keys
from ets_agent.server import openapi
from ets_agent.server.answering import Answering
from ets_agent.server.body import body_of
from ets_agent.server.errors import ApiError, install
from ets_agent.server.limits import Admission, Limits
from ets_agent.server.metrics import Measured, Metrics
from ets_agent.server.replies import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    Health,
    Model,
    ModelList,
    Reward,
    RewardList,
)
from ets_agent.server.requests import ChatCompletionRequest, CompletionRequest, SamplingRequest
from ets_agent.server.runs import Work
from ets_agent.server.shapes import ChatShape, TextShape
from ets_agent.server.translation import chat_asked, completion_asked

OPEN = "/healthz"
"""The one address that needs no key."""
ANYBODY: Caller = b""
"""Who asks where no keys are needed: all callers are one."""


def create_app(
    reasoning: GuidedReasoning,
    *,
    keys: Keys | None = None,
    limits: Limits | None = None,
    names: Sequence[str] = (),
    hosts: Sequence[str] = (),
) -> FastAPI:
    """Return an application that answers as OpenAI's API does.

    Args:
        reasoning: Makes the answers, within its policy; it stays open when the application ends.
        keys: The keys that let a caller in; without any, everybody is let in.
        limits: What one caller may have.
        names: Names of the model besides its own; the first one is what replies say.
        hosts: Names of this machine, besides those of loopback, that callers without keys may use in addresses.
    """
    keys, limits = keys or Keys(), (limits or Limits()).within(reasoning.places)
    models = list(dict.fromkeys([*names, reasoning.backend.name]))
    metrics, work = Metrics(reasoning.places), Work()
    answering = Answering(reasoning=reasoning, admission=Admission(limits), work=work, metrics=metrics, model=models[0])
    app = FastAPI(
        title="ets-agent",
        version=__version__,
        description="Guided sampling behind OpenAI's API.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.work = work
    app.include_router(_answers(answering, models, limits))
    app.include_router(_lists(reasoning, models, metrics))
    install(app)
    # What is added last is outermost: everything is counted, also those who are not let in.
    app.add_middleware(Guarded, keys=keys, names=Names(own_names(hosts)))
    app.add_middleware(Measured, metrics=metrics)
    openapi.describe(app, models=models, policy=reasoning.policy, limits=limits, keys=keys, is_open=OPEN)
    return app


class Guarded:
    """Middleware that lets nobody in without a key, wherever to, so that strangers do not learn what there is.

    Where no keys are needed, it lets nobody in who calls this machine by a name that is not its own.

    Args:
        app: What is guarded.
        keys: The keys.
        names: The machine's names.
    """

    def __init__(self, app: ASGIApp, keys: Keys, names: Names) -> None:
        """Keep everything."""
        self._app = app
        self._keys = keys
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Note who asks, or refuse."""
        if scope["type"] == "http":
            try:
                caller = self._caller(Headers(scope=scope))
            except ApiError as error:
                if scope["path"] != OPEN:
                    await error.response()(scope, receive, send)
                    return
            else:
                scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)

    def _caller(self, headers: Headers) -> Caller:
        if not self._keys.required:
            self._check_names(headers)
            return ANYBODY
        caller = self._keys.of_header(headers.get("authorization", ""))
        if caller is None:
            raise ApiError(
                401,
                "no valid API key; send one as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return caller

    def _check_names(self, headers: Headers) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._names.has_host(host):
            raise ApiError(
                421, f"{host!r:.200} is no name of this server; allowed: {self._names}", code="host_not_allowed"
            )
        if origin is not None and not self._names.has_origin(origin):
            raise ApiError(403, f"pages of {origin!r:.200} may not use this server", code="origin_not_allowed")


def _answers(answering: Answering, models: Sequence[str], limits: Limits) -> APIRouter:
    router = APIRouter()
    policy = answering.reasoning.policy
    read_chat = body_of(ChatCompletionRequest, max_bytes=limits.max_body, seconds=limits.body_seconds)
    read_text = body_of(CompletionRequest, max_bytes=limits.max_body, seconds=limits.body_seconds)

    @router.post(
        "/v1/chat/completions",
        responses=openapi.answers(ChatCompletion, ChatCompletionChunk),
        openapi_extra=openapi.body(ChatCompletionRequest),
    )
    async def create_chat_completion(request: Request) -> Response:
        """Answer a chat, with guided sampling."""
        body = await answering.work.until_ending(read_chat(request))
        _check(body, models, limits)
        return answering.response(request, chat_asked(body, policy), ChatShape)

    @router.post(
        "/v1/completions",
        responses=openapi.answers(Completion, Completion),
        openapi_extra=openapi.body(CompletionRequest),
    )
    async def create_completion(request: Request) -> Response:
        """Continue texts as they stand, with guided sampling."""
        body = await answering.work.until_ending(read_text(request))
        _check(body, models, limits)
        return answering.response(request, completion_asked(body), TextShape)

    return router


def _lists(reasoning: GuidedReasoning, models: Sequence[str], metrics: Metrics) -> APIRouter:
    router = APIRouter()
    created = int(time.time())
    listed = {name: Model(id=name, created=created, owned_by="ets-agent") for name in models}

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        """List the model that is served, by all its names."""
        return ModelList(data=list(listed.values()))

    @router.get("/v1/models/{model:path}", responses=openapi.errors(404))
    async def retrieve_model(model: str) -> Model:
        """Tell about the model that is served."""
        if model not in listed:
            raise _no_model(model, models)
        return listed[model]

    @router.get("/v1/rewards")
    async def list_rewards() -> RewardList:
        """List the rewards that callers may ask for, with the arguments that they may give."""
        first = next(iter(reasoning.policy.offers))
        return RewardList(
            data=[
                Reward(id=name, description=offer.summary, default=name == first, arguments=offer.schemas)
                for name, offer in reasoning.policy.offers.items()
            ]
        )

    @router.get("/metrics", response_class=Response, responses=openapi.plain_text())
    async def metrics_page() -> Response:
        """Tell figures to Prometheus."""
        return metrics.page()

    @router.get(OPEN)
    async def health() -> Health:
        """Tell that the server is up."""
        return Health()

    return router


def _check(body: SamplingRequest, models: Sequence[str], limits: Limits) -> None:
    if body.model not in models:
        raise _no_model(body.model, models)
    limits.check(body.prompts * body.choices, param="n" if body.choices > 1 else "prompt")


def _no_model(name: str, models: Sequence[str]) -> ApiError:
    served: Any = ", ".join(models)
    return ApiError(
        404, f"no model {name!r:.200} is served here; allowed: {served}", param="model", code="model_not_found"
    )
