"""Ends jobs that have not begun in time, of any handler, paused or not, also of those that no node has."""

from __future__ import annotations

import time
from collections.abc import Mapping

from workerd.clock import SECOND
from workerd.config.model import Config
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.store import expiry

PERIOD_S = 10.0
MAX_ROWS = 500
"""Rows that one transaction ends."""
SLICE_PAUSES = 2.0
"""A slice of a handler's queues is followed by a pause this many times as long."""


class Expiry:
    """Sweeps jobs with an `expires_at`, then those of the handlers here that have an `expires` of their own.

    `handlers`: what they have, microseconds. `expired`: jobs ended since the start.
    """

    def __init__(self, store: MonitoredStore, handlers: Mapping[str, int]) -> None:
        self._store = store
        self._handlers = sorted(handlers.items())
        self._turn = -1  # the jobs with an `expires_at`
        self._place: expiry.Place | None = None
        self.expired = 0

    def sweep(self) -> float | None:
        """One slice: of the jobs with a time of their own, or of one handler."""
        turn = self._turn
        self._turn = turn + 1 if turn + 1 < len(self._handlers) else -1  # also if the store refuses it
        pause = self._sweep_all() if turn < 0 else self._sweep_handler(*self._handlers[turn])
        if pause is not None:
            self._turn = turn
            return pause
        return None if self._turn < 0 else 0.0

    def _sweep_all(self) -> float | None:
        """One slice of the jobs with a time of their own; seconds until the next, None if it was the last."""
        found = self._store.run(lambda tx: expiry.sweep(tx, MAX_ROWS))
        self.expired += found
        return 0.0 if found >= MAX_ROWS else None

    def _sweep_handler(self, name: str, expires_us: int) -> float | None:
        """One slice of a handler; seconds until its next one, None if it was the last."""
        began_at = time.monotonic()
        place, self._place = self._place, None
        swept = self._store.run(lambda tx: expiry.sweep_handler(tx, name, expires_us, MAX_ROWS, place))
        self._place = swept.next
        self.expired += swept.ended
        if swept.next is None:
            return None
        return 0.0 if swept.ended >= MAX_ROWS else SLICE_PAUSES * (time.monotonic() - began_at)


def expiring_handlers(config: Config) -> dict[str, int]:
    """How long after they are due jobs may begin, microseconds, by handler."""
    return {
        handler.name: round(handler.expires * SECOND)
        for handler in config.handlers.values()
        if handler.expires is not None
    }
