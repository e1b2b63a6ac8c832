"""Rescue: the claims of dead nodes are lost and go on elsewhere (laws 2 and 8)."""

from __future__ import annotations

import time

from workerd.dispatcher.agenda import Duty, jittered
from workerd.dispatcher.contact import Contact
from workerd.dispatcher.reports import Reports
from workerd.dispatcher.unheld import lose
from workerd.job import Key
from workerd.log import get_logger
from workerd.store import jobs, nodes
from workerd.store.connection import Tx
from workerd.store.jobs import HeldRow
from workerd.store.nodes import NodeRecord

SLICE = 500
NODE_DIED = "the node {name} died while it was waiting there or running"


class Rescue(Duty):
    """Sends an outcome for every claim of a dead node; one slice, then waits until it is committed.

    A node is dead when its lease is over, which only somebody can say who has seen the store answer for
    a whole lease; or when it is one of `formers`, incarnations that held the lock which this one holds.
    """

    name = "rescue"

    def __init__(
        self, contact: Contact, reports: Reports, incarnation: bytes, formers: frozenset[bytes], lease: float
    ) -> None:
        super().__init__()
        self._contact = contact
        self._reports = reports
        self._incarnation = incarnation
        self._formers = formers
        self._lease = lease
        self._replayed = False
        self._writing = False
        self._sent: set[Key] = set()
        self._strays: dict[bytes, float] = {}  # incarnations without a row: when they were first seen
        self._log = get_logger("dispatcher")
        self.rescued = 0

    def spool_is_replayed(self) -> None:
        """What earlier incarnations left in the spool is committed: what they still have is lost."""
        if not self._replayed:
            self._replayed = True
            self.wake()

    def work(self) -> float | None:
        """One slice of one dead node."""
        if self._writing:
            return None
        dead, rows = self._contact.read(self._find)
        if dead is None:
            return jittered(self._lease / 3)
        if rows:
            return self._lose(dead, rows)
        if self._contact.run(lambda tx: nodes.remove(tx, dead.id)):
            self._log.info("dead node removed", node=dead.name)
        return 0.0

    def _find(self, tx: Tx) -> tuple[NodeRecord | None, list[HeldRow]]:
        """A dead node and the first of its claims."""
        for node in nodes.list_(tx):
            if node.id != self._incarnation and self._is_dead(node, tx.now):
                return node, jobs.held(tx, node.id, SLICE)
        for stray in nodes.strays(tx):
            if stray != self._incarnation and self._is_stray(stray):
                return NodeRecord(id=stray, name="that has no row any more"), jobs.held(tx, stray, SLICE)
        return None, []

    def _is_stray(self, stray: bytes) -> bool:
        """A living node that lost its row has it back within a lease."""
        seen = self._strays.setdefault(stray, time.monotonic())
        return time.monotonic() - seen >= self._lease and self._contact.answers_for >= self._lease

    def _is_dead(self, node: NodeRecord, now: int) -> bool:
        if node.id in self._formers:
            return self._replayed
        return node.lease_until < now and self._contact.answers_for >= self._lease

    def _lose(self, node: NodeRecord, rows: list[HeldRow]) -> float | None:
        fresh = [row for row in rows if row.key not in self._sent]
        self._sent = {row.key for row in rows}
        if not fresh:  # the ingester could not close them; asking faster would not help
            self._sent.clear()
            return jittered(self._lease / 3)
        why = NODE_DIED.format(name=node.name)
        self._reports.send([lose(row, why, node.id) for row in fresh])
        self.rescued += len(fresh)
        self._log.warning("claims of a dead node rescued", node=node.name, claims=len(fresh))
        self._writing = True
        self._reports.barrier((), self._written)
        return None

    def _written(self) -> None:
        self._writing = False
        self.wake()
