"""A few connections to the store, lent to whichever thread asks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from workerd.errors import StoreAway, StoreError
from workerd.store import Store


class Stores:
    """At most `most` connections, opened when needed, kept for the next thread.

    `timeout`: seconds that a thread waits for one to come free; then StoreAway. After a fork the child
    opens its own: a connection that two processes speak on is broken for both.
    """

    def __init__(self, make: Callable[[], Store], most: int, timeout: float) -> None:
        self._make = make
        self._most = most
        self._timeout = timeout
        self._free: list[Store] = []
        # A parent's connections, kept for good: an object that goes closes its descriptor, and where the
        # child has closed what it inherited, as a worker does, that number may be another file's by now.
        self._inherited: list[Store] = []
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._inherited += self._free
        self._free = []
        self._places = threading.BoundedSemaphore(self._most)
        self._closed = False

    @contextmanager
    def lent(self) -> Iterator[Store]:
        """A store for the calling thread alone. Raises StoreAway when none comes free in time."""
        if self._pid != os.getpid():
            self._begin()
        places = self._places
        if not places.acquire(timeout=self._timeout):
            raise StoreAway(
                f"all {self._most} connections of this client are in use; give it more with `connections`"
            )
        try:
            with self._lock:
                store = self._free.pop() if self._free else None
            if store is None:
                store = self._make()
            try:
                yield store
            finally:
                self._take_back(store)
        finally:
            places.release()

    def _take_back(self, store: Store) -> None:
        with self._lock:
            if not self._closed:
                self._free.append(store)
                return
        store.close()

    def close(self) -> None:
        """Close what is free now, and what is lent when it comes back."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for store in free:
            with suppress(StoreError):
                store.close()
