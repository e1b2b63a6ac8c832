"""The gateway's way to the store and to the supervisor: a few threads, so that the event loop never waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from workerd.client import ConnectionPool
from workerd.config.model import Config
from workerd.gateway.problems import HTTPProblem
from workerd.runtime.control import ask
from workerd.runtime.paths import Paths
from workerd.runtime.sockets import poke
from workerd.store.base import Store, Tx
from workerd.store.engines import open_store

T = TypeVar("T")
THREADS = 4
"""Threads, each with a connection to the store of its own."""
TIMEOUT = 4.0
"""Seconds that one statement may take."""
MOST_WAITING = 256
"""Calls that may wait for a thread; above it the gateway is busy and says so."""
STATUS_FRESH = 0.25
"""Seconds for which an answer of the supervisor is as good as a new one."""


class Backend:
    """Runs whole transactions in threads; asks the supervisor; wakes the dispatcher."""

    def __init__(self, config: Config, timeout: float = TIMEOUT) -> None:
        self.config = config
        self.paths = Paths(config.node)
        self.draining = False
        self._timeout = timeout
        self._stores = ConnectionPool(self._open, THREADS, timeout)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="store")
        self._asking = ThreadPoolExecutor(1, thread_name_prefix="supervisor")
        self._waiting = 0
        self._status: dict[str, Any] = {}
        self._status_at = -STATUS_FRESH
        self._status_lock = asyncio.Lock()

    def _open(self) -> Store:
        store = open_store(
            self.config.store, state_dir=self.config.node.state_dir, timeout=self._timeout, spare=True
        )
        try:
            store.check_version()
        except BaseException:
            store.close()
            raise
        return store

    async def run(self, work: Callable[[Tx], T]) -> T:
        """One whole transaction. Raises StoreError, and Problem 503 while the node drains or is too busy."""
        if self.draining:
            raise HTTPProblem(
                503, "This node is ending; send it to another one, or again.", {"Retry-After": "5"}
            )
        return await self._call(lambda store: store.run(work))

    async def read(self, work: Callable[[Tx], T]) -> T:
        """The same for reading."""
        return await self._call(lambda store: store.read(work))

    async def _call(self, work: Callable[[Store], T]) -> T:
        if self._waiting >= MOST_WAITING:
            raise HTTPProblem(
                503, "The gateway has too much to do just now; try again.", {"Retry-After": "1"}
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._lent, work)
        finally:
            self._waiting -= 1

    def _lent(self, work: Callable[[Store], T]) -> T:
        with self._stores.lent() as store:
            return work(store)

    def wake(self) -> None:
        """Tell the dispatcher that there is work."""
        poke(self.paths.wake)

    async def status(self) -> dict[str, Any]:
        """What the supervisor says; {} when it does not answer."""
        async with self._status_lock:
            if time.monotonic() - self._status_at > STATUS_FRESH:
                loop = asyncio.get_running_loop()
                self._status = await loop.run_in_executor(self._asking, self._ask)
                self._status_at = time.monotonic()
            return self._status

    def _ask(self) -> dict[str, Any]:
        try:
            return ask(self.paths.supervisor, {"ask": "status"}, timeout=2.0)
        except OSError:
            return {}

    def close(self) -> None:
        """Let go of the threads and their connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._asking.shutdown(wait=False, cancel_futures=True)
        self._stores.close()
