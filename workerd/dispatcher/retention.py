"""Retention: rows that ended long ago are removed, in small slices with long pauses."""

from __future__ import annotations

import time
from collections.abc import Iterable

from workerd.clock import SECOND
from workerd.config.model import RetentionConfig
from workerd.dispatcher.claimer import Claimer
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.store import audit, retention
from workerd.store.retention import RetentionLimits

MAX_ROWS = 500
"""Rows that one transaction looks at."""
PAUSES, BUSY_PAUSES = 10.0, 50.0
"""A slice is followed by a pause this many times as long: claims keep nearly all of the store's time."""
SHORTEST_PAUSE_S = 0.05
LONGEST_PERIOD_S = 600.0
"""Between two passes over the table; a quarter of the shortest retention if that is less."""
RUNS_PERIOD_S = 30.0
"""Between two rounds over the runs of recurring handlers: those pile up however young they are."""


class Retention:
    """Passes over requests, then over jobs, then over the audit.

    `period_s`: pause between two passes, None if everything is kept. `removed`: rows since the start.
    """

    def __init__(self, store: MonitoredStore, claimer: Claimer, config: RetentionConfig) -> None:
        self._store = store
        self._claimer = claimer
        self._completed_s, self._failure_s = config.completed, config.failure
        self._audit_s = config.audit
        kept = [s for s in (config.completed, config.failure, config.audit) if s is not None]
        self.period_s = min(LONGEST_PERIOD_S, max(1.0, min(kept) / 4)) if kept else None
        self._cursor: bytes | None = None
        self._stages = (self._remove_requests, self._remove_jobs, self._remove_audit)
        self._stage = 0
        self.removed = 0

    def remove(self) -> float | None:
        """One slice."""
        if self.period_s is None:
            return None
        began_at, stage = time.monotonic(), self._stage
        self._stage = (stage + 1) % len(self._stages)  # also if the store refuses to remove something
        if self._stages[stage]():
            self._stage = stage
            pauses = BUSY_PAUSES if self._claimer.is_busy() else PAUSES
            return max(SHORTEST_PAUSE_S, pauses * (time.monotonic() - began_at))
        return SHORTEST_PAUSE_S if self._stage else None

    def _remove_requests(self) -> bool:
        """Whether there are more."""
        removed = self._store.run(
            lambda tx: retention.purge_requests(tx, self._limits(tx.now), limit=MAX_ROWS)
        )
        self.removed += removed
        return removed >= MAX_ROWS

    def _remove_jobs(self) -> bool:
        """Whether the pass goes on."""
        cursor = self._cursor
        purged = self._store.run(
            lambda tx: retention.purge_jobs(tx, self._limits(tx.now), limit=MAX_ROWS, cursor=cursor)
        )
        self._cursor = purged.cursor
        self.removed += purged.rows
        return purged.cursor is not None

    def _remove_audit(self) -> bool:
        """Whether there is more."""
        kept_us = None if self._audit_s is None else int(self._audit_s * SECOND)
        if kept_us is None:
            return False
        return self._store.run(lambda tx: audit.purge(tx, tx.now - kept_us, limit=MAX_ROWS)) >= MAX_ROWS

    def _limits(self, now: int) -> RetentionLimits:
        return RetentionLimits(
            completed=None if self._completed_s is None else now - int(self._completed_s * SECOND),
            failure=None if self._failure_s is None else now - int(self._failure_s * SECOND),
        )


class RunRetention:
    """Keeps only the newest completed runs of each recurring handler, one handler per slice."""

    def __init__(self, store: MonitoredStore, handlers: Iterable[str]) -> None:
        self._store = store
        self._handlers = sorted(handlers)
        self._turn = 0

    def remove(self) -> float | None:
        """The next handler in turn."""
        if not self._handlers:
            return None
        turn = self._turn
        self._turn = (turn + 1) % len(self._handlers)  # also if the store refuses to remove something
        removed = self._store.run(lambda tx: retention.purge_runs(tx, self._handlers[turn], limit=MAX_ROWS))
        if removed >= MAX_ROWS:
            self._turn = turn
            return SHORTEST_PAUSE_S
        return SHORTEST_PAUSE_S if self._turn else None
