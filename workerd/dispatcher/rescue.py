"""Rescue: claims of dead nodes get an outcome, then the node's row is removed (law 2)."""

from __future__ import annotations

import time

from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.dispatcher.tasks import TaskRunner, jittered
from workerd.job import AttemptRef, ClaimedAttempt
from workerd.log import get_logger
from workerd.outcome import lost
from workerd.policy import next_after_loss
from workerd.runtime.outcome_sender import OutcomeSender
from workerd.store import claims, nodes
from workerd.store.base import Tx
from workerd.store.nodes import NodeRecord

MAX_ROWS = 500
"""Claims of one slice."""
NODE_DIED = "the node {name} died while it was waiting there or running"

_log = get_logger("dispatcher")


class Rescue:
    """Sends outcomes for the claims of dead nodes, one slice at a time, each after the last is committed.

    A node is dead when its lease is over, as seen by a node for which the store has answered without a gap
    for a whole lease (law 8); or when it is one of `formers`, incarnations that held this node's lock.
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
            return None
        if rows:
            return self._send_lost(dead, rows)
        if self._store.run(lambda tx: claims.adopt(tx, dead.id)):
            return 0.0
        if self._store.run(lambda tx: nodes.remove(tx, dead.id)):
            _log.info("node.removed", node=dead.name)
            return 0.0
        return self._defer(dead)

    def _find_dead(self, tx: Tx) -> tuple[NodeRecord | None, list[ClaimedAttempt]]:
        """A dead node and the first of its claims."""
        for node in nodes.list_(tx):
            if self._is_due(node.id) and self._is_dead(node, tx.now):
                return node, claims.held(tx, node.id, MAX_ROWS)
        for node_id in nodes.strays(tx):
            if self._is_due(node_id) and self._is_dead_rowless(node_id):
                node = NodeRecord(id=node_id, name="without a row")
                return node, claims.held(tx, node_id, MAX_ROWS)
        return None, []

    def _is_due(self, node_id: bytes) -> bool:
        """Whether it is another incarnation, and not one that has been deferred."""
        return node_id != self._incarnation and self._deferred.get(node_id, 0.0) <= time.monotonic()

    def _defer(self, node: NodeRecord) -> float:
        """Some of its claims cannot be closed now: others first, and this one again later."""
        self._deferred[node.id] = time.monotonic() + jittered(self._lease_s / 3)
        return 0.0

    def _is_dead(self, node: NodeRecord, now: int) -> bool:
        if node.id in self._formers:
            return self._spool_is_replayed
        return node.lease_until < now and self._store.answered_for_s >= self._lease_s

    def _is_dead_rowless(self, node_id: bytes) -> bool:
        """A living node that lost its row has it back within a lease."""
        seen_at = self._rowless.setdefault(node_id, time.monotonic())
        seen_for_s = time.monotonic() - seen_at
        return seen_for_s >= self._lease_s and self._store.answered_for_s >= self._lease_s

    def _send_lost(self, node: NodeRecord, rows: list[ClaimedAttempt]) -> float | None:
        fresh = [row for row in rows if row.ref not in self._sent]
        self._sent = {row.ref for row in rows}
        if not fresh:  # the ingester could not close them; asking again sooner would not help
            self._sent.clear()
            return self._defer(node)
        error = NODE_DIED.format(name=node.name)
        self._outcomes.send_all([lost(row, error, next_after_loss(row), node.id) for row in fresh])
        self.rescued += len(fresh)
        _log.warning("claims.rescued", node=node.name, claims=len(fresh))
        self._writing = True
        self._outcomes.barrier((), self._on_written)
        return None

    def _on_written(self) -> None:
        self._writing = False
        self._tasks.wake(self.rescue)
