"""Recurring work: cron ticks, the intervals of coolers, and the sync of configured schedules."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from functools import partial

from workerd.clock import SECOND
from workerd.config.handler_config import HandlerConfig
from workerd.config.schedule_config import NamedSchedule
from workerd.dispatcher.claimer import Claimer
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.dispatcher.stager import Stager
from workerd.dispatcher.tasks import TaskRunner, jittered
from workerd.dispatcher.workflow_tasks import WorkflowPickup
from workerd.errors import StoreBusy, StoreRefused, UnreadableRow
from workerd.log import get_logger
from workerd.runtime.adaptive_size import AdaptiveSize
from workerd.schedule import SET_BACK_US, Cron, Ticks, voided
from workerd.store import intervals, schedule_control, schedules, ticks
from workerd.store.base import Tx
from workerd.store.schedules import ScheduleRow
from workerd.store.ticks import Fired

MAX_SCHEDULES = 100
"""Schedules that one transaction reads or writes."""
SYNC_PERIOD_S = 5.0
SYNC_PAUSES = 10.0
"""A round of the sync is followed by a pause this many times as long, at least by SYNC_PERIOD_S."""
ORPHANED_ROUNDS = 3
"""Rounds in a row in which no live node has a schedule, before it is removed: nodes restart one by one."""
INTERVALS_PERIOD_S = 5.0
"""Between two rounds over all recurring handlers."""
CRON_PERIOD_S = 1.0
"""The longest pause between two readings of the clock; ticks of an unwatched schedule count as missed."""
SHORTEST_CRON_PAUSE_S = 0.01
MISSED_AFTER_US = 5 * SECOND
"""Without a reading of the clock, after which ticks count as missed."""
HELD_TICK_RETRY_US = SECOND // 2
"""After which a tick is tried again that waits for the run before it."""
FAILED_TICK_RETRY_US = 10 * SECOND
"""The same for a tick that the store refused, or whose row is locked: each try waits for the lock."""

_log = get_logger("dispatcher")


class Intervals:
    """Ensures that every recurring handler has its live row, one handler per slice."""

    def __init__(self, store: MonitoredStore, claimer: Claimer, handlers: Collection[HandlerConfig]) -> None:
        self._store = store
        self._claimer = claimer
        self._pauses = [(h.name, h.schedule.cooler) for h in handlers if h.schedule.cooler is not None]
        self._turn = 0

    def ensure_next(self) -> float | None:
        """The next handler in turn."""
        if not self._pauses:
            return None
        name, pause_s = self._pauses[self._turn]
        self._turn = (self._turn + 1) % len(self._pauses)
        if self._store.run(lambda tx: intervals.ensure_next(tx, name, pause_s)):
            self._claimer.announce([name])
        return 0.0 if self._turn else None


class ScheduleSync:
    """Writes the configured schedules to the store, and removes those that no live node has."""

    def __init__(
        self,
        tasks: TaskRunner,
        store: MonitoredStore,
        intervals: Intervals,
        workflows: WorkflowPickup,
        configured: Mapping[str, NamedSchedule],
    ) -> None:
        self._tasks = tasks
        self._store = store
        self._intervals = intervals
        self._workflows = workflows
        self._configured = configured
        self._size = AdaptiveSize(MAX_SCHEDULES)
        self._to_write: list[str] = []
        self._began_at = 0.0
        self._orphaned: Counter[str] = Counter()

    def sync(self) -> float | None:
        """One slice: some of the configured schedules, or, after the last of them, those that no node has.

        After a round that took long the pause is longer too: on a slow line others need it.
        """
        if not self._to_write:
            self._began_at = time.monotonic()
            self._to_write = sorted(self._configured)
        part = self._to_write[: self._size.value]
        if part:
            with self._size.measured():
                self._write({name: self._configured[name] for name in part})
            del self._to_write[: len(part)]
            if self._to_write:
                return 0.0
        self._remove_orphans()
        took_s = time.monotonic() - self._began_at
        return jittered(max(SYNC_PERIOD_S, SYNC_PAUSES * took_s))

    def _write(self, part: Mapping[str, NamedSchedule]) -> None:
        if self._store.run(lambda tx: schedule_control.upsert(tx, part)):
            # A schedule was written: its first run may be started.
            self._tasks.wake(self._intervals.ensure_next)
            self._tasks.wake(self._workflows.start_recurring)

    def _remove_orphans(self) -> None:
        orphans = self._store.read(lambda tx: schedule_control.orphans(tx, self._configured))
        self._orphaned = Counter({name: self._orphaned[name] + 1 for name in orphans})
        removed = [name for name, rounds in self._orphaned.items() if rounds >= ORPHANED_ROUNDS]
        if removed:
            self._store.run(lambda tx: schedule_control.retire(tx, removed))
            _log.info("schedules.removed", schedules=", ".join(removed))


class CronTicks:
    """Fires the ticks of cron schedules, one per slice; the store lets each fire once over all nodes.

    `fired`: ticks that this node fired since the start.
    """

    def __init__(
        self, tasks: TaskRunner, store: MonitoredStore, stager: Stager, configured: Iterable[NamedSchedule]
    ) -> None:
        self._tasks = tasks
        self._store = store
        self._stager = stager
        self._schedules: dict[str, NamedSchedule] = {}
        self._revisions: dict[str, int] = {}  # of those that were set at run time
        self._ticks: dict[str, Ticks] = {}
        self._size = AdaptiveSize(MAX_SCHEDULES)
        self._due: deque[tuple[str, int, int | None]] = deque()  # name, tick, and a `last_tick` that is void
        self.fired = 0
        for schedule in configured:
            if schedule.cooler is None and schedule.enabled:
                self._add(schedule)

    def _add(self, schedule: NamedSchedule) -> None:
        cron = Cron(schedule.cron, schedule.timezone)
        self._schedules[schedule.name] = schedule
        self._ticks[schedule.name] = Ticks(cron, schedule.misfire, MISSED_AFTER_US)

    def put(self, schedule: NamedSchedule, revision: int) -> None:
        """Fire a schedule that was set at run time. Raises InvalidValue for a wrong expression."""
        self.drop(schedule.name)
        if schedule.cooler is None and schedule.enabled:
            self._add(schedule)
            self._revisions[schedule.name] = revision

    def drop(self, name: str) -> None:
        """Fire a schedule no more."""
        for known in (self._schedules, self._ticks, self._revisions):
            known.pop(name, None)
        self._forget_due(name)
        self._tasks.clear(_shown(name))

    def fire_due(self) -> float | None:
        """Fire the next tick that is due, or read the clock for new ones."""
        if not self._ticks:
            return None
        if not self._due:
            self._find_due()
        if self._due:
            self._fire(*self._due[0])
            return 0.0
        ticks = [t.next for t in self._ticks.values() if t.next is not None]
        pause_s = self._store.seconds_until(min(ticks)) if ticks else CRON_PERIOD_S
        return min(CRON_PERIOD_S, max(SHORTEST_CRON_PAUSE_S, pause_s))

    def _find_due(self) -> None:
        now = self._store.now()
        names = [name for name, ticks in self._ticks.items() if ticks.watch(now)]
        rows: dict[str, ScheduleRow] = {}
        while names:  # all before the first of them fires, which may take long: else the rest is missed
            part, names = names[: self._size.value], names[self._size.value :]
            with self._size.measured():
                rows |= self._store.read(partial(schedules.find_all, names=part))
        held = self._held_until(rows, now)
        # ScheduleSync writes those that are missing in a moment.
        for name, row in rows.items():
            ticks = self._ticks[name]
            void = row.last_tick if voided(ticks.cron, row.last_tick, now) else None
            moments = ticks.due(row.last_tick, now, held.get(name, 0))
            if row.paused_at is None:
                self._due.extend((name, moment, void) for moment in moments)

    def _held_until(self, rows: Mapping[str, ScheduleRow], now: int) -> dict[str, int]:
        """Until when ticks that this process did not watch waited for the last run, and were not missed."""
        queued = {
            name: row.last_job
            for name, row in rows.items()
            if row.last_job is not None
            and self._schedules[name].overlap == "queue"
            and self._ticks[name].misses(now)
        }
        if not queued:
            return {}
        runs = self._store.read(lambda tx: ticks.last_runs(tx, queued.values()))
        return {name: (runs[job].ended_at or 0) if runs[job].over else now for name, job in queued.items()}

    def _fire(self, name: str, moment: int, void: int | None) -> None:
        schedule, revision = self._schedules[name], self._revisions.get(name)

        def tick(tx: Tx) -> Fired:
            if moment > tx.now + SET_BACK_US:
                return Fired.TAKEN  # the store's clock was set back, and this node does not know it yet
            return ticks.tick(tx, schedule, moment, void=void, revision=revision).fired

        try:
            fired = self._store.run(tick)
        except (StoreBusy, StoreRefused, UnreadableRow) as error:
            # The ticks of other schedules go on.
            self._hold(name, moment, FAILED_TICK_RETRY_US)
            self._tasks.report(_shown(name), error)
            return
        self._tasks.clear(_shown(name))
        self._due.popleft()
        match fired:
            case Fired.FIRED:
                self.fired += 1
                self._stager.announce([schedule.target])
            case Fired.HELD:
                self._hold(name, moment, HELD_TICK_RETRY_US)

    def _hold(self, name: str, moment: int, retry_us: int) -> None:
        """Try this tick of a schedule and those after it again, not before the others."""
        self._ticks[name].hold(moment, self._store.now() + retry_us)
        self._forget_due(name)

    def _forget_due(self, name: str) -> None:
        if any(item[0] == name for item in self._due):
            self._due = deque(item for item in self._due if item[0] != name)


def _shown(name: str) -> str:
    return f'schedule "{name}"'
