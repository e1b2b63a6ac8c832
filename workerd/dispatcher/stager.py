"""Makes rows claimable when they are due, and polls for new jobs, cancels and pauses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from workerd.config.workflow_config import WAIT_HANDLER
from workerd.dispatcher.claimer import Claimer
from workerd.dispatcher.limited_handlers import LimitedHandlers
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.dispatcher.pool_links import PoolLink, PoolLinks
from workerd.dispatcher.tasks import TaskRunner
from workerd.dispatcher.workflow_tasks import WorkflowPickup
from workerd.job import AttemptRef
from workerd.messages import Cancel, Release
from workerd.store import claims, polls
from workerd.store.polls import PollResult

MAX_DUE_ROWS = 500
"""Rows that one transaction makes `new`."""
SHORTEST_PAUSE_S = 0.002
"""Between two transactions for due rows; not 0, since another node may hold a due row locked."""
CANCEL_REPEAT_S = 5.0
"""Until a cancel that is still pending is sent again: its claim may have been in transit."""


class Stager:
    """Makes scheduled rows `new` once they are due, and passes on what every poll of the store brings.

    `on_expired` is called when there are rows that have expired.

    promoted
        Rows made `new` since the start.
    paused
        Handlers of this node that are paused.
    on_polled
        Called with what every poll found.
    """

    def __init__(
        self,
        tasks: TaskRunner,
        store: MonitoredStore,
        pools: PoolLinks,
        claimer: Claimer,
        workflows: WorkflowPickup,
        handlers: Iterable[str],
        incarnation: bytes,
        limited: LimitedHandlers,
        on_expired: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_expired = on_expired
        self._tasks = tasks
        self._store = store
        self._pools = pools
        self._claimer = claimer
        self._workflows = workflows
        self._handlers = frozenset(handlers)
        self._incarnation = incarnation
        self._limited = limited
        self._holds: frozenset[tuple[str, int]] = frozenset()  # that the pools were told of
        self._promoted_at = 0.0
        self._cancels: dict[AttemptRef, float] = {}  # those under way, and when they were last sent
        self.on_polled: Callable[[PollResult], object] | None = None
        self.promoted = 0
        self.paused: frozenset[str] = frozenset()

    def announce(self, names: Iterable[str] | None = None) -> None:
        """New rows exist for these handlers or workflows; None: for any."""
        self._claimer.announce(names)
        self._workflows.announce(names)

    # -- due rows

    def promote_due(self) -> float | None:
        """One slice of due rows; sleeps until the next one is due."""
        self._promoted_at = time.monotonic()
        promoted = self._store.run(lambda tx: claims.promote_due(tx, MAX_DUE_ROWS))
        if promoted.count:
            self.promoted += promoted.count
            self.announce(promoted.handlers)
        if promoted.expired:
            self._on_expired()
        if promoted.full:
            return 0.0
        if promoted.next_due is None:
            return None
        return max(SHORTEST_PAUSE_S, self._store.seconds_until(promoted.next_due))

    def on_scheduled(self, due: int) -> None:
        """A wake-up announced a row that becomes due at this store time."""
        if self._store.knows_time:  # else the first slice is still to come
            # Not immediately: any local program may send this again and again.
            pause_s = self._promoted_at + SHORTEST_PAUSE_S - time.monotonic()
            self._tasks.wake(self.promote_due, max(pause_s, self._store.seconds_until(due)))

    # -- polls

    def poll(self) -> None:
        """One combined query: new jobs, pauses, cancels, next due time."""
        handlers = sorted(self._claimer.to_poll())
        polled = [*handlers, WAIT_HANDLER]
        parking = self._limited.parking
        holds_since = self._store.now() if self._limited.has_limits else None
        result = self._store.read_one(
            lambda tx: polls.poll(tx, self._incarnation, polled, parking, holds_since)
        )
        self._propagate_holds(result.holds)
        self._propagate_pauses(result)  # before the new jobs: paused handlers are not claimed
        self._propagate_cancels(result.cancels)
        if result.next_due is not None:
            self._tasks.wake(self.promote_due, self._store.seconds_until(result.next_due))
        if self.on_polled is not None:
            self.on_polled(result)
        if handlers:
            self._claimer.polled(result.handlers - {WAIT_HANDLER})

    def _propagate_holds(self, holds: frozenset[tuple[str, int]]) -> None:
        """Release waiting claims of newly held limits."""
        new, self._holds = holds - self._holds, holds
        handlers = self._limited.of_limit(limit for limit, _ in new)
        if handlers:
            self._pools.broadcast(Release(handlers=tuple(sorted(handlers))))

    def on_pool_up(self, link: PoolLink) -> None:
        """A pool connected: it has missed what was sent before."""
        self._cancels.clear()
        if self.paused:
            link.send(Release(handlers=tuple(sorted(self.paused))))

    def _propagate_pauses(self, result: PollResult) -> None:
        served = {name for link in self._pools.peers.values() for name in link.handlers}
        paused = frozenset(result.paused & (served | self._handlers))
        if paused == self.paused:
            return
        new, self.paused = paused - self.paused, paused
        if new:
            self._pools.broadcast(Release(handlers=tuple(sorted(new))))
        self._claimer.pause(paused)

    def _propagate_cancels(self, keys: list[AttemptRef]) -> None:
        """To all pools: which of them holds a claim is not known here."""
        now = time.monotonic()
        self._cancels = {key: self._cancels[key] for key in keys if key in self._cancels}
        for key in keys:
            if now - self._cancels.get(key, -CANCEL_REPEAT_S) >= CANCEL_REPEAT_S:
                self._cancels[key] = now
                self._pools.broadcast(Cancel(key=key))
