"""The periodic task that releases jobs that wait behind a unique key that no live job holds any more."""

from __future__ import annotations

from collections.abc import Iterable

from workerd.dispatcher.claimer import Claimer
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.store import duplicates

PERIOD_S = 30.0
MAX_ROWS = 500
"""Rows that one transaction changes."""


class Followers:
    """Jobs that wait until another of their unique key has ended, of the handlers of this node.

    The transaction that ends the other lets them go; nothing does where a person deleted its row, or took its
    key away.
    """

    def __init__(self, store: MonitoredStore, claimer: Claimer, handlers: Iterable[str]) -> None:
        self._store = store
        self._claimer = claimer
        self._handlers = sorted(handlers)

    def sweep(self) -> float | None:
        """One slice; without such jobs it costs one index look-up for each 100 handlers."""
        found = self._store.read(lambda tx: duplicates.without_holder(tx, self._handlers, MAX_ROWS))
        if not found:
            return None
        released = self._store.run(lambda tx: duplicates.release(tx, found[:MAX_ROWS]))
        if released:
            self._claimer.announce()
        return 0.0 if released >= MAX_ROWS else None
