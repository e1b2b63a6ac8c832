"""Schedules by name: those set at run time, as every node learns of them, and the coolers among them all."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from workerd.clock import SECOND
from workerd.config.schedule_config import NamedSchedule
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.dispatcher.recurring import MAX_SCHEDULES, CronTicks
from workerd.dispatcher.stager import Stager
from workerd.dispatcher.tasks import TaskRunner
from workerd.errors import InvalidValue, StoreBusy
from workerd.log import get_logger
from workerd.runtime.adaptive_size import AdaptiveSize
from workerd.store import schedule_control, schedules, ticks
from workerd.store.ticks import Fired

COOLER_COST_S = 0.01
"""Of a look at one cooler, at most: many of them are looked at less often."""
MAX_REVISIONS = 2000
"""Names with their revisions that one slice reads."""

_log = get_logger("dispatcher")


class NamedCoolers:
    """Starts the runs of coolers by name, one per slice, each its pause after the end of the last."""

    def __init__(
        self, store: MonitoredStore, stager: Stager, configured: Iterable[NamedSchedule], poll_s: float
    ) -> None:
        self._store = store
        self._stager = stager
        self._poll_s = poll_s
        self._schedules: dict[str, tuple[NamedSchedule, int | None]] = {}
        self._due: dict[str, int] = {}  # store time, microseconds, at which to look at each again
        for schedule in configured:
            if not schedule.own:
                self.put(schedule, None)

    def put(self, schedule: NamedSchedule, revision: int | None) -> None:
        """Run this one from now on; `revision` if it was set at run time."""
        self.drop(schedule.name)
        if schedule.cooler is not None and schedule.enabled:
            self._schedules[schedule.name] = schedule, revision
            self._due[schedule.name] = 0

    def drop(self, name: str) -> None:
        """Start it no more."""
        self._schedules.pop(name, None)
        self._due.pop(name, None)

    def run_due(self) -> float | None:
        """Look at the one that has been due longest."""
        if not self._due:
            return None
        name = min(self._due, key=self._due.__getitem__)
        now = self._store.now()
        if self._due[name] > now:
            return min(self._poll_s, max(0.001, self._store.seconds_until(self._due[name])))
        again_at = now + round(max(self._poll_s, COOLER_COST_S * len(self._due)) * SECOND)
        self._due[name] = again_at
        schedule, revision = self._schedules[name]
        try:
            fired = self._store.run(lambda tx: ticks.run_cooler(tx, schedule, revision=revision))
        except StoreBusy:
            return 0.0  # of others, this one again in a moment
        if fired.fired is Fired.FIRED:
            self._stager.announce([schedule.target])
        elif fired.due is not None:
            self._due[name] = max(again_at if fired.due <= now else fired.due, now + 1)
        return 0.0


class StoredSchedules:
    """Reads the schedules that were set at run time, whenever their revision has changed."""

    def __init__(
        self, tasks: TaskRunner, store: MonitoredStore, cron_ticks: CronTicks, coolers: NamedCoolers,
        configured: Iterable[str],
    ) -> None:  # fmt: skip
        self._tasks = tasks
        self._store = store
        self._cron_ticks = cron_ticks
        self._coolers = coolers
        self._configured = frozenset(configured)
        self._size = AdaptiveSize(MAX_SCHEDULES)
        self._known: dict[str, int] = {}
        self._seen: int | None = None
        self._reading: int | None = None  # the revision that this round reads
        self._found: dict[str, int] = {}
        self._after = ""
        self._to_read: list[str] | None = None  # None: names are still being read

    def on_revision(self, revision: int) -> None:
        """A poll found this revision."""
        if revision != self._seen:
            self._tasks.wake(self.read)

    def read(self) -> float | None:
        """One slice: some names with their revisions, then some of the schedules that have changed."""
        if self._reading is None:
            self._reading = self._store.read(schedule_control.revision)
            self._found, self._after, self._to_read = {}, "", None
        if self._to_read is None:
            self._read_names()
        elif self._to_read:
            self._read_changed()
        else:
            self._seen, self._reading = self._reading, None
            return None
        return 0.0

    def _read_names(self) -> None:
        found = self._store.read(partial(schedule_control.revisions, after=self._after, limit=MAX_REVISIONS))
        self._found.update(found)
        if len(found) >= MAX_REVISIONS:
            self._after = found[-1][0]
            return
        for name in self._known.keys() - self._found.keys():
            del self._known[name]
            self._cron_ticks.drop(name)
            self._coolers.drop(name)
        changed = (name for name, number in self._found.items() if self._known.get(name) != number)
        self._to_read = [name for name in changed if name not in self._configured]

    def _read_changed(self) -> None:
        assert self._to_read is not None
        part = self._to_read[: self._size.value]
        with self._size.measured():
            rows = self._store.read(partial(schedules.find_all, names=part))
        for name, row in rows.items():
            if row.origin != "api":
                continue
            self._known[name] = row.revision
            try:
                schedule = schedules.definition(row)
                self._cron_ticks.put(schedule, row.revision)
                self._coolers.put(schedule, row.revision)
            except InvalidValue as error:
                _log.error("schedule.refused", schedule=name, error=str(error))
        del self._to_read[: len(part)]
        self._tasks.wake(self._cron_ticks.fire_due)
        self._tasks.wake(self._coolers.run_due)
