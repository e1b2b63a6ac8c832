"""The gateway's access to the store, in threads: the event loop never blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from workerd.config.model import Config
from workerd.gateway.periodic import repeat
from workerd.gateway.problems import overloaded, unavailable
from workerd.gateway.supervisor_link import SupervisorLink
from workerd.operations.access import ConnectionPool, Store, Tx, open_checked
from workerd.runtime.generations import Generations
from workerd.runtime.paths import Paths
from workerd.runtime.wake_ups import Waker, new_row, new_rows

T = TypeVar("T")
A = TypeVar("A")
MAX_CONNECTIONS = 4
"""Threads, each with its own connection to the store."""
STATEMENT_TIMEOUT_S = 4.0
MAX_QUEUED_CALLS = 256
"""Calls that may wait for a thread; above it requests are refused with 503."""
DRAINING_RETRY_AFTER_S = 5


class Backend:
    """Runs whole transactions in threads, wakes the dispatcher; `supervisor` is asked about processes."""

    def __init__(self, config: Config, timeout: float = STATEMENT_TIMEOUT_S) -> None:
        self.config = config
        self.paths = Paths(config.node)
        self.supervisor = SupervisorLink(config.node)
        self.draining = False
        self._waker = Waker(self.paths.wake)
        self._timeout = timeout
        self._stores = ConnectionPool(self.open, MAX_CONNECTIONS, timeout)
        self._store_threads = ThreadPoolExecutor(MAX_CONNECTIONS, thread_name_prefix="store")
        self._queued_calls = 0

    def open(self) -> Store:
        """A connected store of its own. Raises StoreError."""
        return open_checked(self.config, self._timeout, spare=True)

    async def write(self, work: Callable[[Tx], T], handlers: Iterable[str] | None = None) -> T:
        """Run `work` in one transaction and wake the dispatcher.

        `handlers`: those of which it makes new rows, if these are known. Raises StoreError, and HTTPProblem
        503 while the node drains or is overloaded.
        """
        self.refuse_while_draining()
        result: T = await self.call(self._lend, lambda store: store.run(work))
        self.wake(handlers)
        return result

    async def write_each(self, work: Callable[[Callable[[Callable[[Tx], Any]], Any]], T]) -> T:
        """As `write`, for several transactions one after the other; `work` gets what runs one."""
        self.refuse_while_draining()
        result = await self.call(self._lend, lambda store: work(store.run))
        self.wake()
        return result

    def refuse_while_draining(self) -> None:
        """Raises HTTPProblem 503 while the node drains."""
        if self.draining:
            raise unavailable(
                "This node is shutting down; send the request to another node or retry later.",
                DRAINING_RETRY_AFTER_S,
            )

    def wake_early(self, handlers: Iterable[str]) -> None:
        """Tell the dispatcher that rows of these handlers are being inserted."""
        self._waker.wake_early(handlers)

    def wake_for(self, handler: str, job: bytes) -> None:
        """Wake the dispatcher for this new job alone."""
        self._waker.wake(new_row(handler, job))

    def wake(self, handlers: Iterable[str] | None = None) -> None:
        """Wake the dispatcher of this node, for new rows of these handlers or of any."""
        self._waker.wake(b"" if handlers is None else new_rows(handlers))

    async def read(self, work: Callable[[Tx], T]) -> T:
        """Run `work` in one transaction that only reads. Raises StoreError, HTTPProblem 503 if overloaded."""
        return await self.call(self._lend, lambda store: store.read(work))

    async def check_server(self) -> None:
        """See that the store can be written by this process. Raises StoreError, HTTPProblem 503."""
        await self.call(self._lend, Store.check_server)

    async def keep_checked(self, check_others: Callable[[], None]) -> None:
        """Ask the servers of idle connections, too, whether they may be written; until cancelled.

        `check_others`: those of connections that are not lent here.
        """

        async def turn() -> None:
            check_others()
            await self.in_thread(self._stores.refresh)

        period_s = self.config.dispatcher.lease / 3
        await asyncio.sleep(period_s)  # there are no idle connections yet
        await repeat("connections", period_s, turn)

    async def in_thread(self, work: Callable[[], object]) -> None:
        """Run what uses a store beside the loop."""
        await asyncio.get_running_loop().run_in_executor(self._store_threads, work)

    async def call(self, call: Callable[[A], T], argument: A) -> T:
        """Run what uses a store beside the loop. Raises what it raises, HTTPProblem 503 if overloaded."""
        if self._queued_calls >= MAX_QUEUED_CALLS:
            raise overloaded()
        self._queued_calls += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._store_threads, call, argument)
        finally:
            self._queued_calls -= 1

    def _lend(self, work: Callable[[Store], T]) -> T:
        with self._stores.connection() as store:
            return work(store)

    def metrics_folders(self) -> list[Path]:
        """Where the processes of this daemon, and of those that end beside it, write their own metrics."""
        generations = Generations(self.config.node)
        return [self.paths.metrics, *(generations.paths(number).metrics for number in generations.alive())]

    def close(self) -> None:
        """Drop queued calls and close the connections."""
        self._store_threads.shutdown(wait=False, cancel_futures=True)
        self.supervisor.close()
        self._stores.close()
