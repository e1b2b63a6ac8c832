"""Periodic tasks of limits and groups: what other nodes are configured with, slots and queues left behind."""

from __future__ import annotations

from collections.abc import Iterable

from workerd.dispatcher.claimer import Claimer
from workerd.dispatcher.limited_handlers import LimitedHandlers
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.store import group_queues, limits, nodes, slots
from workerd.store.base import Tx
from workerd.store.nodes import NodeInfo

AGREE_PERIOD_S = 1.0
"""After which a lower limit of a node that was started holds on all others."""
FREE_PERIOD_S = 0.5
"""For what runs without knowing of its slots; where there is none, nothing is asked."""
SWEEP_PERIOD_S = 30.0
MAX_ROWS = 500
"""Rows that one transaction changes."""


class LimitTasks:
    """Keeps what limits have given out true, whatever was configured or deleted meanwhile."""

    def __init__(
        self, store: MonitoredStore, claimer: Claimer, limited: LimitedHandlers, handlers: Iterable[str]
    ) -> None:
        self._store = store
        self._claimer = claimer
        self._limited = limited
        self._plain = sorted(set(handlers) - limited.parking)

    def agree(self) -> None:
        """Learn which limits live nodes have: the lower of each value holds, and their handlers share it."""

        def published(tx: Tx) -> dict[str, NodeInfo]:
            now = tx.now
            return {n.name: n.published for n in nodes.list_(tx) if n.lease_until > now}

        self._limited.agree(self._store.read(published))

    def free_counted_late(self) -> None:
        """Free the slots of attempts that ended and were counted only after they had begun."""
        late = self._limited.counted_late
        if late:
            ended = self._store.run(lambda tx: slots.free_ended(tx, late))
            late.difference_update(ended)
            if ended:
                self._claimer.announce()

    def sweep(self) -> float | None:
        """One slice: free slots of attempts that do not run, and queues of handlers that have no groups."""
        freed = self._store.run(lambda tx: slots.sweep(tx, MAX_ROWS))
        swept = self._store.run(lambda tx: limits.sweep(tx, MAX_ROWS))
        moved = self._store.run(self._unpark)
        if freed or moved:
            self._claimer.announce()
        return 0.0 if max(freed, swept) >= MAX_ROWS or moved else None

    def _unpark(self, tx: Tx) -> int:
        for handler in self._plain:
            if group_queues.is_any(tx, handler):
                return group_queues.unpark_some(tx, handler, MAX_ROWS)
        return 0
