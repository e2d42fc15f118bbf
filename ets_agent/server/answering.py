"""The response to a request for answers: admits the caller, carries out the runs, and sends what comes of them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace

from fastapi import Request, Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from ets_agent._connections import hang_up
from ets_agent.guided import GuidedAnswer, GuidedReasoning, GuidedRequest, NoPlaceError, Plan, RequestError
from ets_agent.results import BlockCommitted, CandidatesWeighed, Event, Finished
from ets_agent.server.errors import CLIENT_GONE, ApiError, ClientGoneError, translate
from ets_agent.server.event_stream import EventStream
from ets_agent.server.limits import Admission
from ets_agent.server.metrics import Metrics, note_outcome
from ets_agent.server.replies import DONE
from ets_agent.server.runs import Work, follow
from ets_agent.server.shapes import Heading, Shape
from ets_agent.server.translation import Asked

TRACE_HEADER = "X-Ets-Trace-Id"
_LAST_WORD_SECONDS = 0.5
"""How long a client is given to be told that its stream ends before its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """What answers are made with.

    Attributes:
        reasoning: Makes them.
        admission: Lets callers in.
        work: Ends what nobody waits for.
        metrics: Counts.
        model: The model, by the name that callers know.
    """

    reasoning: GuidedReasoning
    admission: Admission
    work: Work
    metrics: Metrics
    model: str

    def response(self, request: Request, asked: Asked, shape: Callable[[Heading], Shape]) -> Answers:
        """Return the response to a request."""
        return Answers(self, asked, shape, caller=request.state.caller)

    def plans(self, requests: Sequence[GuidedRequest]) -> list[Plan]:
        """Return how requests will be answered that differ in prompt and seed alone: the reward is compiled once.

        Raises:
            RequestError: Something is not possible.
        """
        first, *others = requests
        plan = self.reasoning.plan(first)
        plans = [plan]
        for other in others:
            seed = None if other.settings is None else other.settings.seed
            plans.append(
                replace(
                    plan,
                    prompt=other.prompt(chat=self.reasoning.backend.capabilities.chat),
                    config=plan.config if seed is None else plan.config.replace(seed=seed),
                    trace_id=secrets.token_hex(8),
                )
            )
        return plans


class Answers(Response):
    """Makes the answers when the server sends it.

    The response begins when the model has done something, with the first step's weights, or with the last block where
    it is not streamed; so what fails before that has a status of its own.
    """

    def __init__(self, answering: Answering, asked: Asked, shape: Callable[[Heading], Shape], *, caller: bytes) -> None:
        """Begin nothing yet."""
        super().__init__()
        self._answering = answering
        self._asked = asked
        self._shape = shape
        self._caller = caller
        self._answers: dict[int, GuidedAnswer] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry out the runs and send what comes of them.

        Raises:
            ApiError: Nothing was sent yet, and nothing will come of it.
            ClientGoneError: The client has hung up before anything was sent.
        """
        try:
            # Who is not let in has no work done for it, and what the policy refuses counts, too.
            with self._answering.admission.admit(self._caller, len(self._asked.requests)):
                await self._send(scope, receive, send)
        except (ApiError, ClientGoneError):
            raise
        except Exception as error:
            raise translate(error) from error

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Do so, once the caller is let in."""
        answering, asked = self._answering, self._asked
        try:
            plans = answering.plans(asked.requests)
        except RequestError as error:
            raise ApiError(400, str(error), param=asked.param(error), code="invalid_value") from error
        shape = self._shape(
            Heading(
                name=plans[0].trace_id,
                created=int(time.time()),
                model=answering.model,
                warnings=asked.warnings,
                choices=asked.choices,
            )
        )
        headers = [(TRACE_HEADER.lower().encode(), ",".join(plan.trace_id for plan in plans).encode())]
        if asked.stream:
            stream = EventStream(send, headers, stall_seconds=answering.admission.limits.stall_seconds)
            await self._send_stream(scope, receive, stream, plans, shape)
        else:
            await self._send_whole(receive, send, headers, plans, shape)

    async def _whole(self, plans: Sequence[Plan], shape: Shape) -> bytes:
        async with aclosing(self._events(plans)) as events:
            async for _ in events:
                pass
        return shape.whole(self._answers).model_dump_json().encode()

    async def _send_whole(
        self, receive: Receive, send: Send, headers: list[tuple[bytes, bytes]], plans: Sequence[Plan], shape: Shape
    ) -> None:
        """Send all answers when the last one is there."""
        body = await self._answering.work.attend(self._whole(plans, shape), receive)
        length = str(len(body)).encode()
        headers = [*headers, (b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _send_stream(
        self, scope: Scope, receive: Receive, stream: EventStream, plans: Sequence[Plan], shape: Shape
    ) -> None:
        """Send all events. Once they have begun, what goes wrong is the last one, and no error of the server."""
        try:
            # The end of the response is not sent from within: it would look as if the client had hung up.
            await self._answering.work.attend(self._stream(stream, plans, shape), receive)
            await stream.event(DONE, last=True)
        except ClientGoneError:
            if not stream.begun:
                raise
            note_outcome(scope, CLIENT_GONE)
            await hang_up(scope)
        except Exception as error:
            if not stream.begun:
                raise
            told = translate(error)
            note_outcome(scope, told.status)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORD_SECONDS):
                    await stream.event(told.body, last=True)
                    return
            await hang_up(scope)

    async def _stream(self, stream: EventStream, plans: Sequence[Plan], shape: Shape) -> None:
        """Send everything but the end."""
        sent = [""] * len(plans)

        async def say(chunk: BaseModel) -> None:
            await stream.event(chunk.model_dump_json(exclude_unset=True))

        async with stream.kept_alive(), aclosing(self._events(plans)) as events:
            async for index, event in events:
                if not isinstance(event, CandidatesWeighed | BlockCommitted | GuidedAnswer):
                    continue
                if not stream.begun:
                    await stream.begin()
                    for chunk in shape.opening(len(plans)):
                        await say(chunk)
                text = "" if isinstance(event, CandidatesWeighed) else event.text
                if len(text) > len(sent[index]):
                    # A run that was cut short has an answer that begins with what was committed.
                    await say(shape.piece(index, text[len(sent[index]) :]))
                    sent[index] = text
                if isinstance(event, GuidedAnswer):
                    await say(shape.closing(index, event))
            if self._asked.include_usage:
                await say(shape.bill(self._answers))

    async def _events(self, plans: Sequence[Plan]) -> AsyncGenerator[tuple[int, Event | GuidedAnswer]]:
        """Carry out the plans, each with its answer as the last event; keep the answers and count them."""
        reasoning = self._answering.reasoning
        async with aclosing(follow(reasoning, plans)) as events:
            async for index, event in events:
                if isinstance(event, Finished):
                    answer = GuidedAnswer.of(event.result, trace_id=plans[index].trace_id)
                elif isinstance(event, NoPlaceError):
                    answer = reasoning.without_place(plans[index], event)
                else:
                    yield index, event
                    continue
                self._answers[index] = answer
                self._answering.metrics.answered(answer)
                yield index, answer
