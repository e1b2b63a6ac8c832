"""The store as programs and people open it: checked for its version before anything else is asked."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

from workerd.config.model import Config
from workerd.errors import StoreAway, StoreError
from workerd.store.base import Store, Tx
from workerd.store.engines import open_store

__all__ = ["ConnectionPool", "Store", "Tx", "migrate", "open_checked"]


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


class ConnectionPool:
    """At most `size` connections, opened when needed and lent to one thread at a time.

    `timeout`: seconds that a thread waits for a free one. After a fork the child opens its own: a connection
    used by two processes is broken for both.
    """

    def __init__(self, make: Callable[[], Store], size: int, timeout: float) -> None:
        self._make = make
        self._size = size
        self._timeout = timeout
        self._free: list[Store] = []
        # The parent's connections are never collected: that would close their descriptors, whose numbers may
        # belong to other files by now in a child that closed what it inherited, such as a worker.
        self._inherited: list[Store] = []
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._inherited += self._free
        self._free = []
        self._places = threading.BoundedSemaphore(self._size)
        self._closed = False

    @contextmanager
    def lent(self) -> Iterator[Store]:
        """A store for the calling thread alone. Raises StoreAway if none becomes free in time."""
        if self._pid != os.getpid():
            self._begin()
        places = self._places
        if not places.acquire(timeout=self._timeout):
            raise StoreAway(f"all {self._size} connections of this client are in use; raise `connections`")
        try:
            with self._lock:
                store = self._free.pop() if self._free else None
            if store is None:
                store = self._make()
            try:
                yield store
            finally:
                self._give_back(store)
        finally:
            places.release()

    def _give_back(self, store: Store) -> None:
        with self._lock:
            if not self._closed:
                self._free.append(store)
                return
        store.close()

    def close(self) -> None:
        """Close the free connections now, the lent ones when they are given back."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for store in free:
            with suppress(StoreError):
                store.close()
