"""Requests that move on without an ending: waits that are due, and batches in slices."""

from __future__ import annotations

from workerd.config.workflow_config import WAIT_HANDLER
from workerd.dispatcher.claimer import Claimer
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.dispatcher.tasks import TaskRunner
from workerd.store import batches, signals
from workerd.store.polls import PollResult

MAX_WAITS = 100
"""Waits that one transaction ends."""
EXPIRY_PERIOD_S = 30.0


class RequestWork:
    """Ends waits that are due, and releases, cancels and retries the jobs of batches, one slice at a time."""

    def __init__(self, tasks: TaskRunner, store: MonitoredStore, claimer: Claimer) -> None:
        self._tasks = tasks
        self._store = store
        self._claimer = claimer

    def on_polled(self, result: PollResult) -> None:
        """A poll found what there is to do."""
        if WAIT_HANDLER in result.handlers:
            self._tasks.wake(self.pass_waits)
        if result.batches:
            self._tasks.wake(self.work_batches)

    def pass_waits(self) -> float | None:
        """One slice of waits that are due."""
        passed = self._store.run(lambda tx: signals.pass_due(tx, MAX_WAITS))
        self._claimer.announce(passed.handlers)
        return 0.0 if passed.due >= MAX_WAITS else None

    def work_batches(self) -> float | None:
        """One slice of one batch."""
        worked = self._store.run(batches.work)
        self._claimer.announce(worked.handlers)
        return 0.0 if worked.found else None

    def expire_batches(self) -> float | None:
        """Fail one batch that was never completed."""
        return 0.0 if self._store.run(batches.expire) else None
