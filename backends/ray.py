"""Many replicas of one local model on a Ray cluster as one backend, one actor each; needs the extra ``ray``.

backend = RayBackend.start("hf/Qwen/Qwen3-8B", replicas=8, num_gpus=1)
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

from backends._pool_members import Waits
from backends._ray_replica import Failure, Replica
from backends.base import Backend
from backends.contract import is_count, is_number
from backends.errors import BackendError, MissingExtraError
from backends.pool import DEFAULT_PATIENCE, Pool

DEFAULT_MAX_STATES = 4096


class RayBackend(Pool):
    """A `Pool` of models in Ray actors.

    Ray places the actors on the machines of its cluster and starts those anew whose process or machine is lost. A run
    stays at one actor, where its caches are; when the actor is lost, it goes on at another one with the same result.
    """

    def __init__(self, members: Sequence[Backend], *, runtime: _Runtime, **settings: Any) -> None:
        """Take members over; `start` makes them."""
        super().__init__(members, **settings)
        self._runtime: _Runtime | None = runtime

    @classmethod
    def start(
        cls,
        name: str,
        *,
        replicas: int = 1,
        num_cpus: float = 1,
        num_gpus: float = 0,
        actor_options: Mapping[str, Any] | None = None,
        address: str | None = None,
        start_timeout: float = 600.0,
        max_states: int = DEFAULT_MAX_STATES,
        first_delay: float = 5.0,
        longest_delay: float = 60.0,
        patience: float = DEFAULT_PATIENCE,
        **options: Any,
    ) -> Self:
        """Start the replicas and wait until all have loaded the model.

        It waits without an event loop, like loading a model in this process. Call it from the main thread where there
        is no cluster yet: only there can Ray start one.

        Args:
            name: The model, as for `backends.load`; every machine of the cluster has to find it under this name.
            replicas: How many actors, each with a copy of the model.
            num_cpus: Processor cores that Ray reserves for each of them.
            num_gpus: GPUs that Ray reserves for each of them; the actor sees no others.
            actor_options: Further options of Ray's actors, such as ``resources`` or ``runtime_env``.
            address: Of a Ray cluster, unless this process is connected to one. By default the one in ``RAY_ADDRESS``,
                or on this machine, or else one that is started here.
            start_timeout: Most seconds until all replicas have loaded the model.
            max_states: Most states that each of them keeps the caches of. What is dropped is computed again.
            first_delay: As for `Pool`.
            longest_delay: As for `Pool`.
            patience: As for `Pool`.
            **options: For the model, as for `backends.load`.

        Raises:
            MissingExtraError: Ray is not installed.
            BackendError: The cluster cannot be reached, has no room for all replicas, or they cannot load the model.
        """
        # All before the replicas are started, which takes minutes.
        waits = Waits(first_delay=first_delay, longest_delay=longest_delay, patience=patience)
        for what, count in (("replicas", replicas), ("max_states", max_states)):
            if not is_count(count, 1):
                raise BackendError(f"{what} is {count!r}; allowed: a whole number of at least 1")
        if not (is_number(start_timeout) and start_timeout > 0):
            raise BackendError(f"start_timeout is {start_timeout!r}; allowed: a finite number above 0 (seconds)")
        for what, amount in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
            if not (is_number(amount) and amount >= 0):
                raise BackendError(f"{what} is {amount!r}; allowed: a finite number of at least 0")
        runtime = _Runtime()
        wanted: dict[str, Any] = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "max_restarts": -1,
            "scheduling_strategy": "SPREAD",
            **(actor_options or {}),
        }
        runtime.join(address)
        try:
            actors = _actors(replicas, wanted, (name, options), max_states)
            try:
                members = _opened(actors, wanted, timeout=start_timeout)
                return cls(members, runtime=runtime, **asdict(waits))
            except BaseException:
                _kill(actors)
                raise
        except BaseException:
            runtime.leave()
            raise

    async def aclose(self) -> None:
        """End the actors, and Ray too if it was started here and nobody else uses it."""
        runtime, self._runtime = self._runtime, None
        try:
            await super().aclose()
        finally:
            if runtime is not None:
                await asyncio.to_thread(runtime.leave)


class _Runtime:
    """This process's connection to Ray, shared by all backends that came to it here; the last one ends it."""

    _lock = threading.Lock()
    _users = 0

    def __init__(self) -> None:
        """Not connected yet."""
        self._joined = False

    def join(self, address: str | None) -> None:
        """Connect, unless this process is connected already.

        Raises:
            MissingExtraError: Ray is not installed.
            BackendError: It cannot be started, or there is no cluster at the address.
        """
        ray = _import()
        with self._lock:
            if not ray.is_initialized():
                _Runtime._users = 0  # Whoever was connected through us has been cut off by someone else.
                try:
                    ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="WARNING")
                except Exception as error:  # Ray raises what it likes, ConnectionError and ValueError among others.
                    raise BackendError(f"cannot connect to Ray at {address or 'this machine'}: {error}") from error
            elif not _Runtime._users:
                return  # Somebody else's connection stays when we go.
            _Runtime._users += 1
            self._joined = True

    def leave(self) -> None:
        """Disconnect if nobody else came here the same way."""
        ray = _import()
        with self._lock:
            if self._joined:
                self._joined = False
                _Runtime._users -= 1
                if _Runtime._users == 0:
                    ray.shutdown()


def _import() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise MissingExtraError("RayBackend needs ray: pip install 'ets-agent[ray]'") from error
    return ray


def _actors(count: int, wanted: Mapping[str, Any], model: tuple[str, Mapping[str, Any]], max_states: int) -> list[Any]:
    ray = _import()
    try:
        kind = ray.remote(Replica).options(**wanted)
        return [kind.remote(*model, max_states=max_states) for _ in range(count)]
    except (TypeError, ValueError) as error:
        raise BackendError(f"Ray refuses the options of the actors: {error}") from error


def _opened(actors: Sequence[Any], wanted: Mapping[str, Any], *, timeout: float) -> list[Any]:
    """Wait until every actor has loaded the model; return their backends."""
    ray = _import()
    from backends._ray_actor import ActorBackend

    answers = [actor.call.remote("describe") for actor in actors]
    ready, waiting = ray.wait(answers, num_returns=len(answers), timeout=timeout)
    for answer in ready:
        try:
            found = ray.get(answer)
        except ray.exceptions.RayError as error:
            raise BackendError(f"a replica could not be started: {error}") from error
        if isinstance(found, Failure):
            raise found.error
    if waiting:
        there, free = ray.cluster_resources(), ray.available_resources()
        raise BackendError(
            f"{len(waiting)} of {len(actors)} replicas were not ready after {timeout:g} s; each of them needs "
            + ", ".join(f"{wanted[f'num_{kind.lower()}s']:g} {kind}" for kind in ("CPU", "GPU"))
            + "; the cluster has "
            + ", ".join(f"{there.get(kind, 0):g} {kind} ({free.get(kind, 0):g} free)" for kind in ("CPU", "GPU"))
        )
    return [ActorBackend(actor, ray.get(answer)) for actor, answer in zip(actors, answers, strict=True)]


def _kill(actors: Sequence[Any]) -> None:
    ray = _import()
    for actor in actors:
        ray.kill(actor)
