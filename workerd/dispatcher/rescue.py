"""Rescue: claims of dead nodes get an outcome, then the node's row is removed (law 2)."""

from __future__ import annotations

import time

from workerd.clock import SECOND
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.dispatcher.tasks import TaskRunner, jittered
from workerd.job import AttemptRef, HeldAttempt, shown_ids
from workerd.log import get_logger
from workerd.outcome import lost
from workerd.policy import next_after_loss
from workerd.runtime.outcome_sender import OutcomeSender
from workerd.store import held_attempts, nodes
from workerd.store.base import Tx
from workerd.store.nodes import NodeRecord

LONGEST_LEASE_S = 3600.0
"""What another node may claim its lease to be: an INSERT-only user can write such a row too."""
SET_BACK_US = SECOND
MAX_ROWS = 500
"""Claims of one slice."""
NODE_DIED = 'the node "{name}" died while it was waiting there or running'

_log = get_logger("dispatcher")


class Rescue:
    """Sends outcomes for the claims of dead nodes, one slice at a time, each after the last is committed.

    A node is dead when its lease is over and its row has not changed for a whole lease, its own if that is
    longer than ours, as seen by a node for which the store has answered without a gap for as long (law 8):
    however the store's clock was set, a living node has renewed its lease meanwhile. Or it is dead because it
    is one of `formers`, incarnations that held this node's lock.
    """

    def __init__(
        self,
        tasks: TaskRunner,
        store: MonitoredStore,
        outcomes: OutcomeSender,
        incarnation: bytes,
        formers: frozenset[bytes],
        lease_s: float,
    ) -> None:
        self._tasks = tasks
        self._store = store
        self._outcomes = outcomes
        self._incarnation = incarnation
        self._formers = formers
        self._lease_s = lease_s
        self._spool_is_replayed = False
        self._writing = False
        self._sent: set[AttemptRef] = set()
        self._counted: dict[bytes, set[AttemptRef]] = {}  # by incarnation, until nothing of it is left
        self._leases: dict[bytes, tuple[int, float]] = {}  # `lease_until`, and since when it is that
        self._check_in_s: float | None = None  # when the next node may be found dead
        self._rowless: dict[bytes, float] = {}  # incarnations without a row, and when they were first seen
        self._deferred: dict[bytes, float] = {}  # incarnations, and when to look at them again
        self.rescued = 0

    def on_settled(self) -> None:
        """A settlement finished, so the spool is replayed: what former incarnations still hold is lost."""
        if not self._spool_is_replayed:
            self._spool_is_replayed = True
            self._tasks.wake(self.rescue)

    def rescue(self) -> float | None:
        """One slice of one dead node."""
        if self._writing:
            return None
        dead, rows = self._store.read(self._find_dead)
        if dead is None:
            return self._check_in_s
        if rows:
            return self._send_lost(dead, rows)
        if self._store.run(lambda tx: held_attempts.adopt(tx, dead.id)):
            return 0.0
        if self._store.run(lambda tx: nodes.remove(tx, dead.id)):
            _log.info("node.removed", node=dead.name)
            return 0.0
        return self._defer(dead)

    def _find_dead(self, tx: Tx) -> tuple[NodeRecord | None, list[HeldAttempt]]:
        """A dead node and the first of its claims."""
        records = nodes.list_(tx)
        self._observe(records)
        self._forget_deferred()
        self._check_in_s = None
        for node in records:
            if self._is_due(node.id) and self._is_dead(node, tx.now):
                return node, held_attempts.held(tx, node.id, MAX_ROWS)
        strays = nodes.strays(tx)
        self._rowless = {node_id: since for node_id, since in self._rowless.items() if node_id in strays}
        left = {*strays, *(node.id for node in records)}
        self._counted = {node_id: refs for node_id, refs in self._counted.items() if node_id in left}
        for node_id in strays:
            if self._is_due(node_id) and self._is_dead_rowless(node_id):
                node = NodeRecord(id=node_id, name="without a row")
                return node, held_attempts.held(tx, node_id, MAX_ROWS)
        return None, []

    def _is_due(self, node_id: bytes) -> bool:
        """Whether it is another incarnation, and not one that has been deferred."""
        return node_id != self._incarnation and node_id not in self._deferred

    def _forget_deferred(self) -> None:
        now = time.monotonic()
        self._deferred = {node_id: until for node_id, until in self._deferred.items() if until > now}

    def _defer(self, node: NodeRecord) -> float:
        """Some of its claims cannot be closed now: others first, and this one again later."""
        self._deferred[node.id] = time.monotonic() + jittered(self._lease_s / 3)
        return 0.0

    def _is_dead(self, node: NodeRecord, now: int) -> bool:
        if node.id in self._formers:
            return self._spool_is_replayed
        its_lease_s = min(node.published.lease_s, LONGEST_LEASE_S)  # 0: unknown
        lease_s = max(self._lease_s, its_lease_s)
        # Further ahead than any renewal puts it: the clock was set back after the last one.
        latest_us = now + int(its_lease_s * SECOND) + SET_BACK_US
        was_set_back = its_lease_s > 0 and node.lease_until > latest_us
        if not (node.lease_until < now or was_set_back):
            return False
        unchanged_for_s = time.monotonic() - self._leases[node.id][1]
        if unchanged_for_s < lease_s:
            self._check_in_s = min(self._check_in_s or lease_s, lease_s - unchanged_for_s)
            return False
        return self._store.answered_for_s >= lease_s

    def _observe(self, records: list[NodeRecord]) -> None:
        now = time.monotonic()
        before = self._leases
        self._leases = {}
        for node in records:
            until, since = before.get(node.id, (node.lease_until, now))
            self._leases[node.id] = node.lease_until, since if until == node.lease_until else now
            self._rowless.pop(node.id, None)

    def _is_dead_rowless(self, node_id: bytes) -> bool:
        """A living node that lost its row has it back within a lease."""
        seen_at = self._rowless.setdefault(node_id, time.monotonic())
        seen_for_s = time.monotonic() - seen_at
        return seen_for_s >= self._lease_s and self._store.answered_for_s >= self._lease_s

    def _send_lost(self, node: NodeRecord, rows: list[HeldAttempt]) -> float | None:
        fresh = [row for row in rows if row.ref not in self._sent]
        self._sent = {row.ref for row in rows}
        if not fresh:  # the ingester could not close them; asking again sooner would not help
            self._sent.clear()
            return self._defer(node)
        error = NODE_DIED.format(name=node.name)
        self._outcomes.send_all([lost(row, error, next_after_loss(row), node.id) for row in fresh])
        self._count(node, {row.ref for row in fresh})
        self._writing = True
        self._outcomes.barrier({}, self._on_written)
        return None

    def _count(self, node: NodeRecord, refs: set[AttemptRef]) -> None:
        """Those that were deferred, as another transaction locked their rows, are sent again."""
        counted = self._counted.setdefault(node.id, set())
        fresh = refs - counted
        counted |= fresh
        if fresh:
            self.rescued += len(fresh)
            jobs = shown_ids(ref.id for ref in fresh)
            _log.warning("claims.rescued", node=node.name, claims=len(fresh), jobs=jobs)

    def _on_written(self) -> None:
        self._writing = False
        self._tasks.wake(self.rescue)
