"""Long polls: a caller that waits for an end holds neither a thread nor a connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Sequence

from workerd.errors import StoreError
from workerd.gateway.backend import Backend
from workerd.gateway.problems import HTTPProblem
from workerd.store.base import Tx

# Long polls: whoever waits for an end holds neither a thread nor a connection.
#
# One task asks for all of them together, in one statement a turn.
#

FIRST = 0.005
"""Seconds until the first look after somebody began to wait."""
LONGEST = 0.1
"""Seconds between two looks at the most."""
IN_ONE = 500
"""Ids of one statement."""

Ended = Callable[[Tx, Sequence[bytes]], set[bytes]]


class LongPolls:
    """Those who wait for jobs, or for requests, to end. `ended`: of these ids, which have."""

    def __init__(self, backend: Backend, ended: Ended) -> None:
        self._backend = backend
        self._ended = ended
        self._waiters: defaultdict[bytes, list[asyncio.Future[None]]] = defaultdict(list)
        self._task: asyncio.Task[None] | None = None
        self._fresh = asyncio.Event()

    async def until_ended(self, ident: bytes, seconds: float) -> None:
        """Return when it has ended, after so many seconds, or when the node drains."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[ident].append(future)
        self._fresh.set()
        if self._task is None:
            self._task = asyncio.create_task(self._look())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await future
        finally:
            self._forget(ident, future)

    def _forget(self, ident: bytes, future: asyncio.Future[None]) -> None:
        waiters = self._waiters.get(ident)
        if waiters and future in waiters:
            waiters.remove(future)
            if not waiters:
                del self._waiters[ident]

    async def _look(self) -> None:
        pause = FIRST
        while self._waiters:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._fresh.wait()
                    pause = FIRST  # who came just now is looked for soon
                    self._fresh.clear()
                    await asyncio.sleep(pause)
            ids = list(self._waiters)
            with contextlib.suppress(StoreError, HTTPProblem):
                for start in range(0, len(ids), IN_ONE):
                    self._wake(await self._ask(ids[start : start + IN_ONE]))
            pause = min(LONGEST, pause * 1.5)
        self._task = None

    async def _ask(self, ids: Sequence[bytes]) -> set[bytes]:
        return await self._backend.read(lambda tx: self._ended(tx, ids))

    def _wake(self, ended: set[bytes]) -> None:
        for ident in ended:
            for future in self._waiters.pop(ident, ()):
                if not future.done():
                    future.set_result(None)

    def answer_all(self) -> None:
        """Everybody is answered as it stands: the node ends."""
        self._wake(set(self._waiters))
