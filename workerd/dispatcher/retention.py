"""Retention: what ended long ago is removed, in small slices that take a tenth of the time at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from workerd.clock import SECOND
from workerd.config.model import RetentionConfig as Kept
from workerd.dispatcher.lease import Contact
from workerd.dispatcher.tasks import PeriodicTask, jittered
from workerd.store import retention
from workerd.store.retention import RetentionLimits

SLICE = 500
"""Rows that one transaction looks at."""
SHARE, BUSY_SHARE = 10.0, 50.0
"""A slice is followed by a pause so many times as long: claims keep nearly all of the time."""
SHORTEST_PAUSE = 0.05
LONGEST_PAUSE = 600.0
"""Seconds between passes over the table; a quarter of the shortest time that is kept, if that is less."""
RUNS_PAUSE = 30.0
"""Seconds between looks at the runs of chains: those grow however young they are."""


class Retention(PeriodicTask):
    """Walks over requests, then over jobs, then rests."""

    name = "retention"

    def __init__(self, contact: Contact, kept: Kept, busy: Callable[[], bool]) -> None:
        super().__init__()
        self._contact = contact
        self._busy = busy
        self._kept = kept
        self._rest = min((s for s in (kept.completed, kept.failure) if s is not None), default=None)
        self._cursor: bytes | None = None
        self._slice = self._requests
        self.removed = 0

    def work(self) -> float | None:
        """One slice."""
        if self._rest is None:
            return None
        began = time.monotonic()
        if self._slice():
            share = BUSY_SHARE if self._busy() else SHARE
            return max(SHORTEST_PAUSE, share * (time.monotonic() - began))
        if self._slice == self._requests:
            self._slice = self._jobs
            return SHORTEST_PAUSE
        self._slice = self._requests
        return jittered(min(LONGEST_PAUSE, max(1.0, self._rest / 4)))

    def _requests(self) -> bool:
        """Whether there is more of them."""
        removed = self._contact.run(
            lambda tx: retention.purge_requests(tx, self._limits(tx.now), limit=SLICE)
        )
        self.removed += removed
        return removed >= SLICE

    def _jobs(self) -> bool:
        """Whether the walk is not over."""
        cursor = self._cursor
        done = self._contact.run(
            lambda tx: retention.purge_jobs(tx, self._limits(tx.now), limit=SLICE, cursor=cursor)
        )
        self._cursor = done.cursor
        self.removed += done.rows
        return done.cursor is not None

    def _limits(self, now: int) -> RetentionLimits:
        completed, failure = self._kept.completed, self._kept.failure
        return RetentionLimits(
            completed=None if completed is None else now - int(completed * SECOND),
            failure=None if failure is None else now - int(failure * SECOND),
        )


class Runs(PeriodicTask):
    """Keeps only the newest completed runs of each chain, one chain a slice."""

    name = "retention of runs"

    def __init__(self, contact: Contact, names: Iterable[str]) -> None:
        super().__init__()
        self._contact = contact
        self._names = sorted(names)
        self._turn = 0

    def work(self) -> float | None:
        """The next chain in turn."""
        if not self._names:
            return None
        name = self._names[self._turn]
        if self._contact.run(lambda tx: retention.purge_runs(tx, name, limit=SLICE)) >= SLICE:
            return SHORTEST_PAUSE
        self._turn = (self._turn + 1) % len(self._names)
        return SHORTEST_PAUSE if self._turn else jittered(RUNS_PAUSE)
