"""Every way to a store outside the roles: opened and version-checked, pooled, or a caller's connection."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, suppress
from types import FrameType, TracebackType
from typing import Any
from weakref import WeakSet

from workerd.config.model import Config
from workerd.errors import StoreAway, StoreBusy, StoreError
from workerd.operations.permits import Permit, Permits
from workerd.store.base import Store, Tx
from workerd.store.engines import open_store
from workerd.store.foreign import ForeignSession
from workerd.store.foreign import is_django as is_django
from workerd.store.inspection import StoreInspection, inspect
from workerd.store.session import ServerState

__all__ = [
    "ConnectionPool", "Store", "StoreInspection", "Tx", "inspect_store", "join", "migrate", "migration_sql",
    "open_checked", "server_states",
]  # fmt: skip


def open_checked(config: Config, timeout: float = 5.0, *, spare: bool = False) -> Store:
    """A connected store of this version; `timeout`: seconds for connecting or one statement.

    `spare`: see `open_store`. Raises ConfigError, StoreAway, WrongVersion.
    """
    store = open_store(config.store, state_dir=config.node.state_dir, timeout=timeout, spare=spare)
    try:
        store.check_version()
    except BaseException:
        store.close()
        raise
    return store


def migrate(config: Config) -> list[str]:
    """Bring the store to this version's schema; the names of the migrations applied. Raises StoreError."""
    with closing(open_store(config.store, state_dir=config.node.state_dir)) as store:
        return store.migrate()


def server_states(config: Config) -> list[ServerState]:
    """Every server that `store.url` names, asked now: its version and role. Raises ConfigError."""
    with closing(open_store(config.store, state_dir=config.node.state_dir)) as store:
        return store.server_states()


def inspect_store(config: Config) -> StoreInspection:
    """The store's schema, and what keeps this user from working with it. Raises ConfigError."""
    with closing(open_store(config.store, state_dir=config.node.state_dir)) as store:
        return inspect(store)


def migration_sql(config: Config) -> list[str]:
    """The statements that `migrate` would run, all if the store cannot be asked. Raises ConfigError."""
    with closing(open_store(config.store, state_dir=config.node.state_dir)) as store:
        return store.migration_sql()


def join(connection: Any) -> Tx:
    """The open transaction of a caller's own connection. Raises TypeError for an unsupported kind of it."""
    return Tx(ForeignSession(connection))


class _Pools:
    """All pools of this process, for what is done with them around a fork."""

    def __init__(self) -> None:
        self._pools: WeakSet[ConnectionPool] = WeakSet()
        self._lock = threading.Lock()
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork,
            after_in_child=self._after_fork_in_child,
        )

    def add(self, pool: ConnectionPool) -> None:
        with self._lock:
            self._pools.add(pool)

    def _before_fork(self) -> None:
        self._lock.acquire()  # until after the fork, so that the child does not find it held by a thread
        for pool in self._pools:
            pool.before_fork()

    def _after_fork(self) -> None:
        for pool in self._pools:
            pool.after_fork()
        self._lock.release()

    def _after_fork_in_child(self) -> None:
        for pool in self._pools:
            pool.after_fork_in_child()
        self._lock.release()


_pools = _Pools()


class _Use(Permit):
    """The use of one connection of a pool, by `with` in a plain function."""

    __slots__ = ("_pool", "generation", "store")

    def __init__(self, pool: ConnectionPool, frame: FrameType) -> None:
        super().__init__(frame)
        self._pool = pool
        self.store: Store | None = None
        self.generation = 0

    def __enter__(self) -> Store:
        try:
            return self._pool.begin(self)
        except BaseException:
            self._pool.end(self, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.end(self, error)

    def abandon(self) -> None:
        if self.store is not None:
            self.store.close()


class ConnectionPool:
    """At most `size` connections, opened on demand, each used by one thread at a time.

    `timeout_s`: how long a thread waits for a free one. After a fork the child opens its own: a connection
    used by two processes is broken for both. An embedded store's are closed before a fork: SQLite keeps its
    locks by process and file, and with a connection of the parent's the child would go on in their shadow.
    """

    def __init__(self, make: Callable[[], Store], size: int, timeout_s: float) -> None:
        self._make = make
        self._size = size
        self._timeout_s = timeout_s
        self._free: list[Store] = []
        # The parent's connections are never collected: that would close their descriptors, whose numbers may
        # belong to other files by now in a child that closed what it inherited, such as a worker.
        self._inherited: list[Store | Permits] = []
        self._permits = Permits(size)
        self._embedded = False
        self._of_fork: list[Permit] = []
        """Held during a fork, so that no thread uses a connection meanwhile."""
        self._is_forking = False
        self._is_quiet = False
        """Whether all are held."""
        self._forked_in_use = False
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()  # as that of the permits
        self._inherited += [*self._free, self._permits]
        self._free = []
        self._permits = Permits(self._size)
        self._closed = False
        self._generation = 0

    def connection(self) -> AbstractContextManager[Store]:
        """A store for the calling function alone. Raises StoreAway if none becomes free in time.

        When one finds that its server is away, all are closed: none stays on a server that was demoted.
        """
        return _Use(self, sys._getframe(1))

    def begin(self, use: _Use) -> Store:
        """As `connection`, for a use; `end` is to follow, whatever happens."""
        if self._pid != os.getpid():
            self._reset()
        if self._forked_in_use:
            raise StoreAway(
                "this process was forked while the parent used an embedded store; fork between two calls"
            )
        if not self._permits.take(use, self._timeout_s):
            raise StoreAway(f"all {self._size} connections of this client are in use; raise `connections`")
        with self._lock:
            use.generation = self._generation
            use.store = store = self._free.pop() if self._free else None
        if store is None:
            use.store = store = self._make()
            self._embedded = store.embedded
        elif store.refresh():
            use.generation = self._leave()
        return store

    def end(self, use: _Use, error: BaseException | None) -> None:
        """Take the connection back; `error`: what ended the use."""
        try:
            if isinstance(error, StoreAway) and not isinstance(error, StoreBusy):
                self._leave()
            self._release(use)
        finally:
            self._permits.give_back(use)

    def refresh(self) -> None:
        """Ask the servers of the free connections whether they may be written; if one may not, leave all."""
        for _ in range(len(self._free)):
            use = _Use(self, sys._getframe())
            try:
                if not self._permits.take(use, 0.0):
                    return  # all are in use, and asked then
                self._refresh_oldest(use)
            finally:
                self.end(use, None)

    def _refresh_oldest(self, use: _Use) -> None:
        with self._lock:
            use.generation = self._generation
            use.store = self._free.pop(0) if self._free else None
        if use.store is not None and use.store.refresh():
            use.generation = self._leave()

    def _leave(self) -> int:
        """Close all connections: their server was lost, or may not be written; returns the new generation."""
        with self._lock:
            self._generation += 1
            for store in self._free:
                store.close()  # connects again when it is used
            return self._generation

    def _release(self, use: _Use) -> None:
        store = use.store
        if store is None:
            return
        store.settle()
        with self._lock:
            if use.generation != self._generation or self._closed:
                store.close()
            use.store = None  # first: what is abandoned is closed
            if not self._closed:
                self._free.append(store)

    def before_fork(self) -> None:
        """Of an embedded store: wait until no connection is in use, close all, and allow no further use."""
        if not self._embedded or self._pid != os.getpid():
            return
        self._is_forking, self._is_quiet = True, False
        end = time.monotonic() + self._timeout_s
        for _ in range(self._size):
            self._of_fork.append(Permit())
            if not self._permits.take(self._of_fork[-1], max(0.0, end - time.monotonic())):
                break  # such as by this very thread
        else:
            self._is_quiet = True
        with self._lock:
            for store in self._free:
                store.close()  # connects again when it is used

    def after_fork(self) -> None:
        """In the parent: let others use the store again."""
        self._is_forking = False
        while self._of_fork:
            self._permits.give_back(self._of_fork.pop())

    def after_fork_in_child(self) -> None:
        """Refuse all use if a connection to an embedded store was in use."""
        if self._is_forking and not self._is_quiet:
            self._forked_in_use = True
        self._is_forking = False
        self._of_fork.clear()

    def close(self) -> None:
        """Close the free connections now, the others when they are released."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for store in free:
            with suppress(StoreError):
                store.close()
