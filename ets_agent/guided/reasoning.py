"""`GuidedReasoning`: hand it a hard question, await a better answer; within limits that its operator has set."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from backends import Backend, CapabilityError, Limiter, Metered, Prompt, PromptError, TokenBudget
from ets_agent._closing import Closing
from ets_agent.config import ETSConfig
from ets_agent.errors import ConfigError
from ets_agent.guided.answer import GuidedAnswer
from ets_agent.guided.policy import Policy
from ets_agent.guided.request import GuidedRequest, RequestError
from ets_agent.guided.schema import TOOL_DESCRIPTION, TOOL_NAME, tool_parameters
from ets_agent.results import Event, Finished, Usage
from ets_agent.sampler import ETS
from ets_agent.traces import TraceError, TraceWriter
from rewards import RewardError, RewardSpec

_log = logging.getLogger(__name__)

DEFAULT_CONCURRENCY = 16


class NoPlaceError(Exception):
    """The time of a run was over before there was a place for it.

    Args:
        seconds: How long it has waited.
    """

    def __init__(self, *, seconds: float) -> None:
        """Keep it."""
        super().__init__("all places were taken until the time was over")
        self.seconds = seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A request that was found to be allowed and possible, and how it will be answered.

    Attributes:
        prompt: What the model is given.
        reward: How answers are judged.
        config: The settings.
        token_budget: Most tokens drawn and scored; None for any number.
        trace_id: Names the run.
        deadline: When it has to be over, by `time.monotonic`; None for no limit.
    """

    prompt: Prompt
    reward: RewardSpec
    config: ETSConfig
    token_budget: int | None
    trace_id: str
    deadline: float | None


class GuidedReasoning:
    """Answers hard questions by guided sampling (`ETS`), for agents.

        async with GuidedReasoning("tiny/qwen3") as reasoning:
            answer = await reasoning("Ada has 4 boxes with 25 cards in each. …", effort="high", timeout=10)
            print(answer.answer, answer.confidence)

    One object serves any number of agents at once. Cancelling a call ends its work. The time limit begins with the
    call, waiting for a place included, and gives the best answer so far instead of an error.

    Args:
        backend: The model, or its name for `backends.load`.
        proposal: A cheaper model for the rollouts, or its name.
        policy: What callers may ask for.
        config: Settings beneath those of requests, such as the temperature; efforts replace M, K and I.
        max_concurrency: Most answers in the making at the same time.
        max_queue: Most calls that wait for a place; further ones fail with `QueueFullError`. None for any number.
        traces: An existing folder that gets a trace of every run, ``TRACE_ID.jsonl``; None to keep none.

    Raises:
        ConfigError: A setting is not allowed, or there is no such folder.
        backends.BackendError: A model cannot be loaded.
        rewards.RewardError: A reward of the policy does not exist.
    """

    def __init__(
        self,
        backend: Backend | str,
        *,
        proposal: Backend | str | None = None,
        policy: Policy | None = None,
        config: ETSConfig | None = None,
        max_concurrency: int = DEFAULT_CONCURRENCY,
        max_queue: int | None = None,
        traces: str | Path | None = None,
    ) -> None:
        """Check everything before a model is loaded."""
        self.policy = Policy() if policy is None else policy
        self._config = ETSConfig() if config is None else config
        self._traces = None if traces is None else Path(traces)
        if self._traces is not None and not self._traces.is_dir():
            raise ConfigError(f"there is no folder {self._traces} for traces")
        self._closing = Closing()
        self._places = Limiter(max_concurrency, max_queue=max_queue)
        # With one step nothing is asked of a model that it might not be able to do; each run asks for what it needs.
        self._models = ETS(backend, proposal=proposal, config=self._config.replace(num_steps=1))

    @property
    def backend(self) -> Backend:
        """The model."""
        return self._models.backend

    @property
    def name(self) -> str:
        """The tool's name, for frameworks."""
        return TOOL_NAME

    @property
    def description(self) -> str:
        """What models are told that the tool is for."""
        return TOOL_DESCRIPTION

    def parameters(self, *, strict: bool = True) -> dict[str, Any]:
        """Return the JSON schema of what models may ask for; see `ets_agent.guided.schema`."""
        return tool_parameters(self.policy, strict=strict)

    @property
    def places(self) -> Limiter:
        """The places for answers in the making, and those who wait for one."""
        return self._places

    def plan(self, request: GuidedRequest | Mapping[str, Any] | str) -> Plan:
        """Return how a request will be answered; its time begins to run.

        Raises:
            RequestError: It is not allowed or not possible; the message says what is.
        """
        request = GuidedRequest.build(request)
        can = self.backend.capabilities
        allowed = self.policy.check(request, self._config, one_step=not can.continue_prefix)
        timeout = allowed.config.timeout
        return Plan(
            prompt=request.prompt(chat=can.chat),
            reward=allowed.reward,
            config=allowed.config,
            token_budget=allowed.token_budget,
            trace_id=secrets.token_hex(8),
            deadline=None if timeout is None else time.monotonic() + timeout,
        )

    async def __call__(
        self,
        question: GuidedRequest | Mapping[str, Any] | str | None = None,
        /,
        *,
        on_event: Callable[[Event], Awaitable[None] | None] | None = None,
        **fields: Any,
    ) -> GuidedAnswer:
        """Return the answer to a request.

        Args:
            question: The question, or a whole request.
            on_event: Called with each event of the run, for progress.
            **fields: Fields of `GuidedRequest`.

        Raises:
            RequestError: The request is not allowed or not possible.
            backends.QueueFullError: Too many calls wait already.
            backends.BackendError: The model failed.
        """
        plan = self.plan(_request(question, fields))
        try:
            async with aclosing(self.run(plan)) as events:
                async for event in events:
                    told = None if on_event is None else on_event(event)
                    if told is not None:
                        await told
                    if isinstance(event, Finished):
                        return GuidedAnswer.of(event.result, trace_id=plan.trace_id)
        except NoPlaceError as error:
            return self.without_place(plan, error)
        raise AssertionError("a run ends with Finished")

    def answer_sync(
        self, question: GuidedRequest | Mapping[str, Any] | str | None = None, /, **fields: Any
    ) -> GuidedAnswer:
        """Return the answer to a request in a script that has no event loop; arguments and errors as for a call.

        Raises:
            RunningLoopError: An event loop is running in this thread; await the call there.
        """
        return self._closing.run(self(question, **fields), blocking="answer_sync", instead="await reasoning(…)")

    async def run(self, plan: Plan) -> AsyncGenerator[Event]:
        """Carry out a plan and yield what happens; the last event is `Finished`.

        Raises:
            RequestError: The reward asks for what this model cannot do, or the prompt cannot be used.
            NoPlaceError: All places were taken until the plan's time was over.
            backends.QueueFullError: Too many calls wait already.
            backends.BackendError: The model failed.
        """
        began = time.monotonic()
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(None if plan.deadline is None else plan.deadline - time.monotonic()):
                    await stack.enter_async_context(self._places)
            except TimeoutError:
                raise NoPlaceError(seconds=time.monotonic() - began) from None
            writer = self._writer(plan)
            if writer is not None:
                stack.enter_context(writer)
            async with aclosing(self._events(plan)) as events:
                async for event in events:
                    if writer is not None and not _written(writer, event):
                        writer = None
                    yield event

    def without_place(self, plan: Plan, error: NoPlaceError) -> GuidedAnswer:
        """Return what there is of a plan that got no place: an answer without text, and why."""
        return GuidedAnswer(
            answer=None,
            text="",
            confidence=None,
            reward=None,
            cut_short=True,
            finish_reason="timeout",
            usage=Usage(seconds=error.seconds),
            seed=None,
            model=self.backend.name,
            trace_id=plan.trace_id,
            warnings=(str(error),),
        )

    async def aclose(self) -> None:
        """Close the models that were opened by name; harmless when called twice."""
        await self._closing.wait()
        await self._models.aclose()

    async def __aenter__(self) -> Self:
        """Return the tool itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()

    async def _events(self, plan: Plan) -> AsyncGenerator[Event]:
        """Run the plan; what is wrong with the request itself is the caller's error."""
        left = None if plan.deadline is None else max(plan.deadline - time.monotonic(), 1e-3)
        try:
            ets = self._sampler(plan)
            try:
                async with aclosing(ets.stream(plan.prompt, timeout=left)) as events:
                    async for event in events:
                        yield event
            finally:
                await self._closing.close(ets)
        except ConfigError as error:
            raise RequestError.of(error) from error
        except RewardError as error:
            raise RequestError(str(error), field="reward") from error
        except (CapabilityError, PromptError) as error:
            raise RequestError(str(error)) from error

    def _sampler(self, plan: Plan) -> ETS:
        """Return a sampler for this run alone, which closes the reward that it builds."""
        backend, proposal = self._models.backend, self._models.proposal
        if plan.token_budget is not None:
            budget = TokenBudget(plan.token_budget)
            backend = Metered(backend, budget)
            proposal = None if proposal is None else Metered(proposal, budget)
        return ETS(backend, plan.reward, proposal, config=plan.config)

    def _writer(self, plan: Plan) -> TraceWriter | None:
        if self._traces is None:
            return None
        path = self._traces / f"{plan.trace_id}.jsonl"
        reward = plan.reward["name"] if isinstance(plan.reward, Mapping) else getattr(plan.reward, "name", None)
        try:
            return TraceWriter(path, prompt=plan.prompt, trace_id=plan.trace_id, reward=reward or None)
        except TraceError as error:
            _log.warning("no trace of run %s: %s", plan.trace_id, error)
            return None


def _request(question: GuidedRequest | Mapping[str, Any] | str | None, fields: Mapping[str, Any]) -> Any:
    if question is None:
        return fields
    if not fields:
        return question
    if isinstance(question, GuidedRequest):
        return question.model_dump(exclude_none=True) | dict(fields)
    return ({"question": question} if isinstance(question, str) else dict(question)) | dict(fields)


def _written(writer: TraceWriter, event: Event) -> bool:
    """Write an event, or give the trace up: a full disk is no reason to lose the answer."""
    try:
        writer.write(event)
    except TraceError as error:
        _log.warning("the trace of run %s ends early: %s", writer.trace_id, error)
        return False
    return True
