"""A FastAPI application of one's own that awaits guided completions, on the embedded model.

    pip install -e ".[local,server]"
    python examples/fastapi_app.py
    curl http://127.0.0.1:8080/answer -H 'Content-Type: application/json' -d '{"question":
        "Iris has 4 packs with 95 eggs in each. Iris loses 213 of them. How many eggs does Iris have now?"}'

It answers 167. The embedded model only knows word problems like this one.

The model is opened once, when the application starts. A question costs one await; other requests are served meanwhile.
A client that hangs up ends the work on its question.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Literal, TypeVar

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field

from backends import QueueFullError
from ets_agent import GuidedReasoning, Policy, RequestError

T = TypeVar("T")


class Question(BaseModel):
    """What clients send."""

    question: str = Field(min_length=1, max_length=2000)
    effort: Literal["low", "medium", "high"] = "low"


class Reply(BaseModel):
    """What they get."""

    answer: str | None
    confidence: float | None
    cut_short: bool


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, GuidedReasoning]]:
    """Keep the model open while the application runs."""
    policy = Policy(max_tokens=64, max_seconds=20)
    async with GuidedReasoning("tiny/qwen3", policy=policy, max_concurrency=4, max_queue=32) as reasoning:
        yield {"reasoning": reasoning}


app = FastAPI(lifespan=lifespan)


@app.post("/answer")
async def answer(request: Request, question: Question) -> Reply:
    """Answer a question, as well as can be done in the time that there is."""
    reasoning: GuidedReasoning = request.state.reasoning
    try:
        found = await while_connected(request, reasoning(question.question, effort=question.effort))
    except QueueFullError as error:
        raise HTTPException(429, "too many questions at once", headers={"Retry-After": "1"}) from error
    except RequestError as error:  # An empty question, or one too long for the model, is the caller's mistake.
        raise HTTPException(422, str(error)) from error
    return Reply(answer=found.answer, confidence=found.confidence, cut_short=found.cut_short)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Await something, and cancel it when the client hangs up."""
    task = asyncio.ensure_future(work)

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        task.cancel()

    watch = asyncio.create_task(hang_up())
    try:
        return await task
    except asyncio.CancelledError:
        if not watch.done():  # It was the server that ended this request.
            raise
        raise HTTPException(499, "the client hung up") from None
    finally:
        watch.cancel()
        task.cancel()


def main() -> None:
    """Serve on this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8080)
    uvicorn.run(app, host="127.0.0.1", port=parser.parse_args().port)


if __name__ == "__main__":
    main()
