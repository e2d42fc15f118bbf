"""Opens a pool of servers, some of which may be down."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from backends._pool_late import LateBackend
from backends.base import Backend
from backends.concurrency import FirstFailure
from backends.endpoints.statuses import may_pass
from backends.errors import EndpointError, UnreachableError
from backends.pool import DEFAULT_PATIENCE, Pool

_log = logging.getLogger("backends.pool")

Connect = Callable[[], Coroutine[Any, Any, Backend]]


async def connect_pool(servers: Sequence[tuple[str, Connect]]) -> Pool:
    """Connect to several servers at once. Those that are down join the pool later, which a warning in the log says.

    Args:
        servers: The name of each, and what connects to it.

    Raises:
        EndpointError: All of them are down.
        BackendError: One of them answers, but cannot be used.
    """
    opening = _Opening()
    try:
        async with FirstFailure() as group:
            for index, (_, connect) in enumerate(servers):
                group.create_task(opening.connect(index, connect))
        if not opening.there:
            raise opening.down[0]
        for index, error in sorted(opening.down.items()):
            _log.warning("%s is down, and joins the pool when it works: %s", servers[index][0], error)
        others = Pool([opening.there[index] for index in sorted(opening.there)])
        return Pool(
            [
                opening.there.get(index) or LateBackend(connect, name=name, others=others)
                for index, (name, connect) in enumerate(servers)
            ]
        )
    except BaseException:
        # Whatever closing one raises: the others are closed, too, and what went wrong first is what is raised.
        await asyncio.gather(*(backend.aclose() for backend in opening.there.values()), return_exceptions=True)
        raise


class _Opening:
    """Who of several servers is there and who is down, by number.

    Once one is there, the others have `DEFAULT_PATIENCE` to follow: somebody can do the work.
    """

    def __init__(self) -> None:
        """Nobody has been asked yet."""
        self.there: dict[int, Backend] = {}
        self.down: dict[int, EndpointError] = {}
        self._limits: set[asyncio.Timeout] = set()

    async def connect(self, index: int, connect: Connect) -> None:
        """Connect to one of them."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(DEFAULT_PATIENCE if self.there else None) as limit:
                self._limits.add(limit)
                try:
                    self.there[index] = await connect()
                finally:
                    self._limits.discard(limit)
        except TimeoutError:
            self.down[index] = UnreachableError(f"no answer {DEFAULT_PATIENCE:g} s after another server's")
        except EndpointError as error:
            if error.status is not None and not may_pass(error.status):
                raise
            self.down[index] = error
        else:
            for other in self._limits if len(self.there) == 1 else ():
                other.reschedule(loop.time() + DEFAULT_PATIENCE)
