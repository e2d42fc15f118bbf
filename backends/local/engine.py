"""The engine: one thread that owns the model and serves all calls from common batches, token by token.

Calls come in from any event loop as requests. Between two tokens the thread takes new rows in, lets finished and
cancelled ones go, and shrinks the batch when the device runs out of memory. With nothing to do for a while the thread
ends; the next request starts another.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from backends.base import SamplingParams
from backends.errors import BackendClosedError, BackendError
from backends.local import shutdown
from backends.local.batch import Batch, Row
from backends.local.cache import Computed, Prefix
from backends.local.model import Model
from backends.local.sampling import SampledDistribution
from backends.local.text import Decoder

_IDLE_SECONDS = 1.0
_SCORED_LOGITS = 2**26
"""Most logits of one scoring pass: 256 MiB in float32."""


@dataclass(slots=True, eq=False)
class _Draw:
    """Rows that are wanted together."""

    rows: Sequence[Row]
    future: Future[None] = field(default_factory=Future)
    missing: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A sequence whose log-probability is wanted, given what precedes it."""

    prefix: Prefix
    token_ids: tuple[int, ...]
    params: SamplingParams


@dataclass(slots=True, eq=False)
class _Score:
    items: Sequence[Scored]
    future: Future[list[float]] = field(default_factory=Future)


class Engine:
    """Serves draws and scores of one model.

    Args:
        model: The model.
        decoder: Finds where responses end.
        max_rows: Most rows in one batch. The limit is halved whenever memory runs out, until there is a pause.
    """

    def __init__(self, model: Model, decoder: Decoder, *, max_rows: int) -> None:
        """Start no thread yet."""
        self._model = model
        self._batch = Batch(model, decoder)
        self._max_rows = max_rows
        self._limit = max_rows
        self._waiting: deque[Row] = deque()
        self._owners: dict[Row, _Draw] = {}
        self._active: set[_Draw] = set()
        self._inbox: deque[_Draw | _Score] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def row_limit(self) -> int:
        """Most rows in one batch at present."""
        return self._limit

    def draw(self, rows: Sequence[Row]) -> Future[None]:
        """Have rows drawn; the future is done when all of them are."""
        request = _Draw(rows, missing=len(rows))
        if rows:
            self._submit(request)
        else:
            request.future.set_result(None)
        return request.future

    def score(self, items: Sequence[Scored]) -> Future[list[float]]:
        """Have sequences scored: log-probabilities in nats, in order."""
        request = _Score(items)
        self._submit(request)
        return request.future

    def close(self) -> None:
        """Fail what is under way and wait for the thread to end."""
        thread = self._stop()
        if thread is not None:
            thread.join()

    def check_open(self) -> None:
        """Raise `BackendClosedError` if the engine is closed."""
        if self._closed:
            raise BackendClosedError("the model is closed")

    def _stop(self) -> threading.Thread | None:
        """Tell the thread, which is returned, to end after its pass."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            return self._thread

    def _submit(self, request: _Draw | _Score) -> None:
        with self._changed:
            self.check_open()
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._serve, name="ets-local-model", daemon=True)
                try:
                    thread.start()  # It waits for the lock that is held here.
                except RuntimeError as error:
                    raise BackendError(f"cannot start a thread for the model: {error}") from error
                shutdown.watch(thread, self._stop)
                self._thread = thread
            self._inbox.append(request)
            self._changed.notify()

    def _serve(self) -> None:
        """Work until there has been nothing to do for a while."""
        try:
            with torch.inference_mode():
                while self._receive():
                    self._turn()
        except BaseException as error:
            # Nobody may be left waiting for a thread that is gone.
            with self._changed:
                self._thread = None
                self._abandon(BackendError(f"the model's thread failed: {type(error).__name__}: {error}"))
            raise
        finally:
            shutdown.unwatch()

    def _receive(self) -> bool:
        """Wait for work and sort it in; return False when the thread is to end."""
        with self._changed:
            if not (self._inbox or self._owners or self._closed):
                self._changed.wait(_IDLE_SECONDS)
            if self._closed or not (self._inbox or self._owners):
                # All of it under the lock: the next call may start another thread right after.
                if self._closed:
                    self._abandon(BackendClosedError("the model was closed while it was working"))
                self._thread = None
                self._limit = self._max_rows  # Who took the memory may be gone when there is work again.
                return False
            requests = list(self._inbox)
            self._inbox.clear()
        for request in requests:
            if isinstance(request, _Score):
                self._serve_score(request)
            else:
                self._active.add(request)
                self._waiting.extend(request.rows)
                self._owners.update(dict.fromkeys(request.rows, request))
        return True

    def _abandon(self, error: BackendError) -> None:
        """Fail all requests and drop all rows."""
        for request in {*self._active, *self._inbox}:
            _fail(request.future, error)
        self._inbox.clear()
        self._forget(list(self._active))
        self._batch.clear()

    def _turn(self) -> None:
        """Decode one token of everything that fits."""
        taken: list[Row] = []
        done: list[Row] = []
        try:
            self._drop_cancelled()
            room = self._limit - len(self._batch.rows)
            taken += [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
            if taken:
                self._model.prefill([row.prefix for row in taken])
                done += self._batch.admit(taken)
            done += self._batch.step()
        except Exception as error:
            self._recover(taken, error)
        for row in done:
            self._deliver(row)

    def _deliver(self, row: Row) -> None:
        owner = self._owners.pop(row, None)
        if owner is None:
            return
        owner.missing -= 1
        if owner.missing == 0:
            self._active.discard(owner)
            if owner.future.set_running_or_notify_cancel():
                owner.future.set_result(None)

    def _drop_cancelled(self) -> None:
        cancelled = [request for request in self._active if request.future.cancelled()]
        if cancelled:
            self._forget(cancelled)
            self._batch.discard(lambda row: row not in self._owners)

    def _forget(self, requests: Iterable[_Draw]) -> None:
        """Drop requests and their rows, except from the batch."""
        for request in requests:
            self._active.discard(request)
            for row in request.rows:
                self._owners.pop(row, None)
        self._waiting = deque(row for row in self._waiting if row in self._owners)

    def _recover(self, taken: Sequence[Row], error: Exception) -> None:
        """After a failed pass: with less memory try again in smaller batches, otherwise fail the calls concerned."""
        rows = list(dict.fromkeys([*self._batch.clear(), *taken]))
        rows = [row for row in rows if row in self._owners]
        if _is_out_of_memory(error) and len(rows) > 1:
            for row in rows:
                row.restart()
            self._limit = max(1, len(rows) // 2)
            self._waiting.extendleft(reversed(rows))
            _free_memory(self._model.device)
            return
        failed = {self._owners[row] for row in rows}
        for owner in failed:
            _fail(owner.future, _wrapped(error))
        self._forget(failed)

    def _serve_score(self, request: _Score) -> None:
        if not request.future.set_running_or_notify_cancel():
            return
        try:
            request.future.set_result(self._score(request.items))
        except Exception as error:
            request.future.set_exception(_wrapped(error))

    def _score(self, items: Sequence[Scored]) -> list[float]:
        """Score in passes of bounded size; the prefix's cache is used, never computed again."""
        size = self._model.vocabulary_size
        known = [all(0 <= token < size for token in item.token_ids) for item in items]
        scores = [0.0 if inside else -math.inf for inside in known]
        pending = [index for index, item in enumerate(items) if item.token_ids and known[index]]
        while pending:
            part = pending[: self._limit]
            try:
                self._model.prefill([items[index].prefix for index in part])
                longest = max(len(items[index].token_ids) for index in part)
                computed = items[part[0]].prefix.computed
                assert computed is not None
                part = part[: max(1, _SCORED_LOGITS // (longest * len(computed.logits)))]
                totals = self._score_pass([items[index] for index in part])
            except Exception as error:
                if not _is_out_of_memory(error) or len(part) == 1:
                    raise
                self._limit = max(1, len(part) // 2)
                _free_memory(self._model.device)
                continue
            for index, total in zip(part, totals, strict=True):
                scores[index] = total
            del pending[: len(part)]
        return scores

    def _score_pass(self, items: Sequence[Scored]) -> list[float]:
        prefixes: list[Computed] = [item.prefix.computed for item in items if item.prefix.computed is not None]
        logits = torch.stack([prefix.logits for prefix in prefixes])[:, None]
        if any(len(item.token_ids) > 1 for item in items):
            following = self._model.continuations([item.token_ids[:-1] for item in items], prefixes)
            logits = torch.cat([logits, following], dim=1)
        totals = []
        for row, item in enumerate(items):
            length = len(item.token_ids)
            distribution = SampledDistribution([item.params], logits.device)  # One line serves all positions.
            log_probabilities = distribution.log_probabilities(logits[row, :length])
            tokens = torch.tensor(item.token_ids, device=logits.device)
            totals.append(float(log_probabilities.gather(1, tokens[:, None]).double().sum()))
        return totals


def _fail(future: Future[Any], error: Exception) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


def _wrapped(error: Exception) -> BackendError:
    if isinstance(error, BackendError):
        return error
    if _is_out_of_memory(error):
        wrapped = BackendError("the device has not enough memory for a single sequence of this length")
    else:
        wrapped = BackendError(f"the model failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and ("out of memory" in str(error) or "can't allocate memory" in str(error))


def _free_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
