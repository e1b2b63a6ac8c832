"""Long polls: waits for the end of jobs and requests, without a thread or a connection each."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Sequence

from workerd.errors import StoreError
from workerd.gateway.backend import Backend
from workerd.gateway.problems import HTTPProblem
from workerd.operations.access import Tx

FIRST_POLL_S = 0.005
"""Delay of the first query after a new waiter."""
MAX_POLL_INTERVAL_S = 0.1
POLL_BACKOFF = 1.5
MAX_IDS_PER_QUERY = 500

EndedOf = Callable[[Tx, Sequence[bytes]], set[bytes]]


class LongPolls:
    """All waiters for one kind of row: one task queries for all of them together.

    `ended_of` returns which of the given ids have ended.
    """

    def __init__(self, backend: Backend, ended_of: EndedOf) -> None:
        self._backend = backend
        self._ended_of = ended_of
        self._waiters: defaultdict[bytes, list[asyncio.Future[None]]] = defaultdict(list)
        self._task: asyncio.Task[None] | None = None
        self._waiter_added = asyncio.Event()

    async def wait(self, row_id: bytes, timeout_s: float) -> None:
        """Return when the row has ended, after the timeout, or when the node drains."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[row_id].append(future)
        self._waiter_added.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await future
        finally:
            self._remove(row_id, future)

    def _remove(self, row_id: bytes, future: asyncio.Future[None]) -> None:
        waiters = self._waiters.get(row_id)
        if waiters and future in waiters:
            waiters.remove(future)
            if not waiters:
                del self._waiters[row_id]

    async def _poll(self) -> None:
        pause = FIRST_POLL_S
        while self._waiters:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._waiter_added.wait()
                    pause = FIRST_POLL_S  # short jobs answer soon
                    self._waiter_added.clear()
                    await asyncio.sleep(pause)
            ids = list(self._waiters)
            with contextlib.suppress(StoreError, HTTPProblem):
                for start in range(0, len(ids), MAX_IDS_PER_QUERY):
                    self._release(await self._query(ids[start : start + MAX_IDS_PER_QUERY]))
            pause = min(MAX_POLL_INTERVAL_S, pause * POLL_BACKOFF)

    async def _query(self, ids: Sequence[bytes]) -> set[bytes]:
        return await self._backend.read(lambda tx: self._ended_of(tx, ids))

    def _release(self, ids: set[bytes]) -> None:
        for row_id in ids:
            for future in self._waiters.pop(row_id, ()):
                if not future.done():
                    future.set_result(None)

    def release_all(self) -> None:
        """Let all waiters answer with the row as it is."""
        self._release(set(self._waiters))
