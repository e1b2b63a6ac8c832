"""Requests of workflows: picked up when new, moved on when left behind, started again when they recur."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from workerd.config.workflow_config import WorkflowConfig
from workerd.dispatcher.claimer import Claimer
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.dispatcher.pickup_window import PickupWindow
from workerd.dispatcher.tasks import TaskRunner
from workerd.errors import StoreBusy, StoreRefused
from workerd.job import id_text
from workerd.log import get_logger
from workerd.runtime.adaptive_size import AdaptiveSize
from workerd.store import requests, stuck_requests
from workerd.store.base import Tx

MAX_NEW_REQUESTS = 50
"""Requests that one transaction picks up."""
MAX_SWEPT_REQUESTS = 100
"""Requests in progress that one transaction of the sweep looks at."""
SWEEP_PERIOD_S = 5.0
SWEEP_PAUSES = 10.0
"""A slice of the sweep is followed by a pause this many times as long."""
WAKE_SPACING_S = 0.02
"""Between two pickups that wake-ups ask for, however many come."""
SHORTEST_PAUSE_S = 0.001

_log = get_logger("dispatcher")


class WorkflowPickup:
    """Picks up queuing requests of this node's workflows, and keeps workflows with a cooler running."""

    def __init__(
        self,
        tasks: TaskRunner,
        store: MonitoredStore,
        claimer: Claimer,
        workflows: Mapping[str, WorkflowConfig],
        window: PickupWindow,
        poll_s: float,
    ) -> None:
        self._tasks = tasks
        self._store = store
        self._claimer = claimer
        self._workflows = workflows
        self._recurring = [w for w in workflows.values() if w.schedule.cooler is not None]
        self._window = window
        self._poll_s = poll_s
        self._announced_at = 0.0
        self._turn = 0
        self._size = AdaptiveSize(MAX_NEW_REQUESTS)

    def announce(self, names: Iterable[str] | None = None) -> None:
        """New rows exist for these handlers or workflows; None: for any."""
        if self._workflows and (names is None or not self._workflows.keys().isdisjoint(names)):
            delay_s = max(0.0, self._announced_at + WAKE_SPACING_S - time.monotonic())
            self._announced_at = time.monotonic() + delay_s
            self._tasks.wake(self.pick_up, delay_s)
            self._tasks.wake(self.start_recurring, delay_s)

    def pick_up(self) -> float | None:
        """One slice of queuing requests, if they may be picked up now."""
        if not self._workflows:
            return None
        if self._window.is_open(self._store.now()):
            limit = self._size.value
            try:
                with self._size.measured():
                    picked = self._store.run(lambda tx: requests.pickup(tx, self._workflows, limit))
            except StoreRefused as error:
                _narrow(
                    self._store, self._size, error,
                    lambda tx, why: requests.fail_queuing(tx, self._workflows, why),
                )  # fmt: skip
                return 0.0
            self._claimer.announce(picked.handlers)
            if picked.picked_up >= limit:
                return 0.0
            self._window.drained()
        return _until_open(self._window, self._store, self._poll_s)

    def start_recurring(self) -> float | None:
        """See that the next workflow in turn has a run that is live or scheduled."""
        if not self._recurring:
            return None
        workflow = self._recurring[self._turn]
        self._turn = (self._turn + 1) % len(self._recurring)
        picked = self._store.run(lambda tx: requests.start_recurring(tx, workflow))
        self._claimer.announce(picked.handlers)
        return 0.0 if self._turn else None


class RequestSweep:
    """Moves on requests in progress that were left behind, by another program or a bug."""

    def __init__(
        self,
        store: MonitoredStore,
        claimer: Claimer,
        workflows: Mapping[str, WorkflowConfig],
        window: PickupWindow,
    ) -> None:
        self._store = store
        self._claimer = claimer
        self._workflows = workflows
        self._window = window
        self._cursor: str | None = None
        self._size = AdaptiveSize(MAX_SWEPT_REQUESTS)

    def sweep(self) -> float | None:
        """One slice."""
        if not self._window.is_open(self._store.now()):
            return _until_open(self._window, self._store, SWEEP_PERIOD_S)
        began_at = time.monotonic()
        limit = self._size.value
        try:
            with self._size.measured():
                swept = self._store.run(
                    lambda tx: stuck_requests.sweep(tx, self._workflows, limit, self._cursor)
                )
        except StoreRefused as error:
            _narrow(
                self._store, self._size, error,
                lambda tx, why: stuck_requests.fail_in_progress(tx, self._cursor, why),
            )  # fmt: skip
            return 0.0
        except StoreBusy:
            if limit > 1:
                self._size.halve()
                return 0.0
            # Another transaction locks a job of this request: the others do not wait for it.
            self._cursor = self._store.read(lambda tx: stuck_requests.after_next(tx, self._cursor))
            raise
        self._claimer.announce(swept.handlers)
        self._cursor = swept.cursor
        if self._cursor is not None:
            # Where requests move on at set times, only the sweep moves them: then without pauses.
            return 0.0 if self._window.opens_at is not None else SWEEP_PAUSES * (time.monotonic() - began_at)
        self._window.drained()
        return _until_open(self._window, self._store, SWEEP_PERIOD_S)


def _narrow(
    store: MonitoredStore,
    size: AdaptiveSize,
    error: StoreRefused,
    fail_first: Callable[[Tx, str], bytes | None],
) -> None:
    """The store refuses what a request of the slice becomes: shorter slices until it is found, and failed."""
    if size.value > 1:
        size.halve()
        return
    failed = store.run(lambda tx: fail_first(tx, str(error)))
    if failed is not None:
        _log.error("request.refused", request=id_text(failed), error=str(error))


def _until_open(window: PickupWindow, store: MonitoredStore, period_s: float) -> float | None:
    """Seconds until the window's next tick if that is within the period, else None."""
    if window.opens_at is None:
        return None
    seconds = max(SHORTEST_PAUSE_S, store.seconds_until(window.opens_at))
    return seconds if seconds < period_s else None
