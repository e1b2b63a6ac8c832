"""Tells the webhooks of pools in quarantine, once the store can be written."""

from __future__ import annotations

from workerd.config.webhook_config import WEBHOOK_HANDLER
from workerd.dispatcher.claimer import Claimer
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.dispatcher.tasks import TaskRunner
from workerd.messages import QuarantinedPool, Roster
from workerd.operations.webhooks import WebhookEvents


class QuarantineReports:
    """Pools whose quarantine is to be reported; a repeat inserts nothing."""

    def __init__(
        self,
        tasks: TaskRunner,
        store: MonitoredStore,
        claimer: Claimer,
        events: WebhookEvents,
        incarnation: bytes,
    ) -> None:
        self._tasks = tasks
        self._store = store
        self._claimer = claimer
        self._events = events
        self._incarnation = incarnation
        self._waiting: list[QuarantinedPool] = []
        self._reported: set[tuple[str, int]] = set()

    def on_roster(self, roster: Roster) -> None:
        """Note the pools that are in quarantine and not reported yet."""
        if not self._events.wants("quarantine"):
            return
        for pool in roster.quarantined:
            if (pool.name, pool.life) not in self._reported:
                self._reported.add((pool.name, pool.life))
                self._waiting.append(pool)
        if self._waiting:
            self._tasks.wake(self.report)

    def report(self) -> float | None:
        """Report one of them."""
        if not self._waiting:
            return None
        pool = self._waiting.pop(0)
        self._waiting.append(pool)  # behind the others, should the store refuse it
        self._store.run(lambda tx: self._events.quarantined(tx, pool, self._incarnation))
        self._waiting.remove(pool)
        self._claimer.announce([WEBHOOK_HANDLER])
        return 0.0 if self._waiting else None
