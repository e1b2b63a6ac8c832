"""Recurring work: cron ticks, intervals, and the sync of configured schedules."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping

from workerd.clock import SECOND
from workerd.config.model import Config, ScheduleConfig
from workerd.dispatcher.lease import Contact
from workerd.dispatcher.tasks import PeriodicTask, jittered
from workerd.errors import NotFound
from workerd.log import get_logger
from workerd.schedule import Cron, Ticks
from workerd.store import schedules
from workerd.store.schedules import Fired

WATCH = 1.0
"""Seconds between looks at the clock; a schedule that nobody watches misses its ticks."""
SHORTEST = 0.01
PATIENCE = 5 * SECOND
"""Microseconds without a look after which ticks count as missed."""
ASK_AGAIN = SECOND // 2
"""Microseconds after which a tick is tried again that waits for the run before it."""
CHAINS_PAUSE = 5.0
"""Seconds between looks whether every chain has its row."""
CATALOGUE_PAUSE = 5.0
ORPHANED = 3
"""Looks in a row at which no live node has a schedule, before it is removed: nodes restart one by one."""

Announce = Callable[[Iterable[str]], None]


class ScheduleSync(PeriodicTask):
    """Makes the store's schedules those of the configuration, and removes what no live node has."""

    name = "schedules"

    def __init__(
        self, contact: Contact, wanted: Mapping[str, ScheduleConfig], on_written: Callable[[], None]
    ) -> None:
        super().__init__()
        self._contact = contact
        self._wanted = wanted
        self._on_written = on_written
        self._orphans: Counter[str] = Counter()

    def work(self) -> float:
        """Write ours, look for those of nobody."""
        changed = self._contact.run(lambda tx: schedules.upsert(tx, self._wanted)) if self._wanted else []
        if changed:
            self._on_written()
        orphans = self._contact.read(lambda tx: schedules.orphans(tx, self._wanted))
        self._orphans = Counter({name: self._orphans[name] + 1 for name in orphans})
        retired = [name for name, seen in self._orphans.items() if seen >= ORPHANED]
        if retired:
            self._contact.run(lambda tx: schedules.retire(tx, retired))
            get_logger("dispatcher").info("schedules removed that no node has", names=", ".join(retired))
        return jittered(CATALOGUE_PAUSE)


class CronTicks(PeriodicTask):
    """Fires the ticks of cron schedules, one a slice; the store lets each fire once over all nodes."""

    name = "ticks"

    def __init__(self, contact: Contact, config: Config, on_fired: Announce) -> None:
        super().__init__()
        self._contact = contact
        self._on_fired = on_fired
        self._workflows = frozenset(config.workflows)
        self._schedules = {n: s for n, s in schedules.wanted(config).items() if s.cooler is None}
        self._ticks = {
            name: Ticks(Cron(s.cron, s.timezone), s.misfire, PATIENCE) for name, s in self._schedules.items()
        }
        self._due: deque[tuple[str, int]] = deque()
        self.fired = 0

    def work(self) -> float | None:
        """Fire the next tick that is due, or look which are."""
        if not self._ticks:
            return None
        if not self._due:
            self._look()
        if self._due:
            self._fire(*self._due[0])
            return 0.0
        following = min((t.next for t in self._ticks.values() if t.next is not None), default=None)
        if following is None:
            return WATCH
        return min(WATCH, max(SHORTEST, self._contact.seconds_until(following)))

    def _look(self) -> None:
        now = self._contact.now()
        names = [name for name, ticks in self._ticks.items() if ticks.watch(now)]
        if not names:
            return
        try:
            rows = self._contact.read(lambda tx: {name: schedules.find(tx, name) for name in names})
        except NotFound:
            return  # the catalogue writes it in a moment
        for name, row in rows.items():
            moments = self._ticks[name].due(row.last_tick, now)
            if row.paused_at is None:
                self._due.extend((name, moment) for moment in moments)

    def _fire(self, name: str, moment: int) -> None:
        overlap, workflow = self._schedules[name].overlap, name in self._workflows
        fired = self._contact.run(
            lambda tx: schedules.tick(tx, name, moment, overlap=overlap, workflow=workflow)
        ).fired
        self._due.popleft()
        match fired:
            case Fired.FIRED:
                self.fired += 1
                self._on_fired([name])
            case Fired.HELD:
                self._ticks[name].hold(moment, self._contact.now() + ASK_AGAIN)
                self._due = deque(item for item in self._due if item[0] != name)


class Intervals(PeriodicTask):
    """Sees that every recurring handler has its live row, one handler a slice."""

    name = "chains"

    def __init__(self, contact: Contact, config: Config, announce: Announce) -> None:
        super().__init__()
        self._contact = contact
        self._announce = announce
        self._pauses = [
            (h.name, h.schedule.cooler) for h in config.handlers.values() if h.schedule.cooler is not None
        ]
        self._turn = 0

    def work(self) -> float | None:
        """The next handler in turn."""
        if not self._pauses:
            return None
        name, pause = self._pauses[self._turn]
        self._turn = (self._turn + 1) % len(self._pauses)
        if self._contact.run(lambda tx: schedules.ensure_chain(tx, name, pause)):
            self._announce([name])
        return 0.0 if self._turn else jittered(CHAINS_PAUSE)
