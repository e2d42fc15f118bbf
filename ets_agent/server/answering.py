"""The response to a request for answers: admits the caller, carries out the runs, and sends what comes of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass

from fastapi import Request, Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from ets_agent.guided import GuidedAnswer, GuidedReasoning
from ets_agent.guided.reasoning import Plan
from ets_agent.results import BlockCommitted, Event, Finished
from ets_agent.server.asked import Asked
from ets_agent.server.errors import ApiError, ClientGoneError, shutting_down, translate
from ets_agent.server.limits import Admission
from ets_agent.server.metrics import Metrics
from ets_agent.server.replies import DONE
from ets_agent.server.runs import Work, follow
from ets_agent.server.shapes import Heading, Shape

TRACE_HEADER = "X-Ets-Trace-Id"
_LAST_WORD_SECONDS = 0.5
"""How long a client is given to be told that the server ends its run."""


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
        """Return the response to a request.

        Raises:
            RequestError: Something is not possible.
        """
        plans = [self.reasoning.plan(each) for each in asked.requests]
        heading = Heading(
            name=plans[0].trace_id,
            created=int(time.time()),
            model=self.model,
            ignored=asked.ignored,
            choices=asked.choices,
        )
        return Answers(self, plans, asked, shape(heading), caller=request.state.caller)


class Answers(Response):
    """Makes the answers when the server sends it.

    The response begins with the first block, or with the last one where it is not streamed, so what fails before that
    has a status of its own.
    """

    def __init__(
        self, answering: Answering, plans: Sequence[Plan], asked: Asked, shape: Shape, *, caller: bytes
    ) -> None:
        """Begin nothing yet."""
        super().__init__(headers={TRACE_HEADER: ",".join(plan.trace_id for plan in plans)})
        self._answering = answering
        self._plans = plans
        self._asked = asked
        self._shape = shape
        self._caller = caller
        self._answers: dict[int, GuidedAnswer] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry out the runs and send what comes of them.

        Raises:
            ApiError: Nothing was sent yet, and nothing will come of it.
            ClientGoneError: The client has hung up.
        """
        answering = self._answering
        with answering.admission.admit(self._caller, len(self._plans)):
            try:
                # The end of the response is not sent from within: it would look as if the client had hung up.
                last = await answering.work.attend(self._stream(send) if self._asked.stream else self._whole(), receive)
            except (ApiError, ClientGoneError):
                raise
            except Exception as error:
                raise translate(error) from error
        if not self._asked.stream:
            await self._start(send, "application/json", length=len(last))
        await send({"type": "http.response.body", "body": last})

    async def _whole(self) -> bytes:
        async with aclosing(self._events()) as events:
            async for _ in events:
                pass
        return self._shape.whole(self._answers).model_dump_json().encode()

    async def _stream(self, send: Send) -> bytes:
        """Send everything but the end, which is returned."""
        count = len(self._plans)
        sent = [""] * count
        started = False
        try:
            async with aclosing(self._events()) as events:
                async for index, event in events:
                    if not started:
                        await self._start(send, "text/event-stream; charset=utf-8")
                        started = True
                        for chunk in self._shape.opening(count):
                            await self._send(send, chunk)
                    text = _text(event)
                    if text is not None and len(text) > len(sent[index]):
                        # A run that was cut short has an answer that begins with what was committed.
                        await self._send(send, self._shape.piece(index, text[len(sent[index]) :]))
                        sent[index] = text
                    if isinstance(event, Finished):
                        await self._send(send, self._shape.closing(index, self._answers[index]))
            if self._asked.include_usage:
                await self._send(send, self._shape.bill(self._answers))
        except asyncio.CancelledError:
            if started and self._answering.work.ended:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_WORD_SECONDS):
                        await send(_body(_event(shutting_down().body)))
            raise
        except ClientGoneError:
            raise
        except Exception as error:
            if not started:
                raise
            return _event(translate(error).body)
        return _event(DONE)

    async def _events(self) -> AsyncGenerator[tuple[int, Event]]:
        """Carry out the plans; keep the answers and count them."""
        async with aclosing(follow(self._answering.reasoning, self._plans)) as events:
            async for index, event in events:
                if isinstance(event, Finished):
                    answer = GuidedAnswer.of(event.result, trace_id=self._plans[index].trace_id)
                    self._answers[index] = answer
                    self._answering.metrics.answered(answer)
                yield index, event

    async def _start(self, send: Send, kind: str, *, length: int | None = None) -> None:
        headers = [
            *(pair for pair in self.raw_headers if pair[0] != b"content-length"),
            (b"content-type", kind.encode()),
            # Proxies must not keep blocks back.
            *([(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")] if length is None else []),
            *([] if length is None else [(b"content-length", str(length).encode())]),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _send(self, send: Send, chunk: BaseModel) -> None:
        """Send a chunk; it takes as long as the client does to read, but not for ever."""
        stall = self._answering.admission.limits.stall_seconds
        try:
            async with asyncio.timeout(stall):
                await send(_body(_event(chunk.model_dump_json(exclude_unset=True))))
        except TimeoutError:
            raise ClientGoneError from None


def _text(event: Event) -> str | None:
    """Return the text that is certain after an event."""
    if isinstance(event, BlockCommitted):
        return event.text
    return event.result.text if isinstance(event, Finished) else None


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def _body(data: bytes) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": True}
