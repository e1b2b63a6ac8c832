"""After an absence of the store: what it still has of the attempts that this node holds or has ended.

A store that comes back may be another server, or the same after a crash or from a backup, and lack the last
commits. Then rows are back as they were before this node claimed them, while the jobs run here or have ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from workerd.dispatcher.limited_handlers import LimitedHandlers
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.job import AttemptRef, ClaimedAttempt, id_text
from workerd.log import get_logger
from workerd.messages import BarrierDone
from workerd.store import reclaims
from workerd.store.claims import NodeIdent

MAX_ROWS = 500
"""Attempts that one transaction looks up."""
MAX_LOGGED_IDS = 20

_log = get_logger("dispatcher")


class StoreComparison:
    """Takes back what this node holds, and what it has ended so that it is settled as lost.

    missing
        Attempts held here that have no row at all.
    taken
        How many rows the last comparison took back.
    """

    def __init__(self, store: MonitoredStore, node: NodeIdent, limited: LimitedHandlers) -> None:
        self._store = store
        self._node = node
        self._limited = limited
        self._held: list[tuple[AttemptRef, int]] = []
        self._to_check: list[AttemptRef] = []
        self._ended: frozenset[AttemptRef] = frozenset()
        self._ended_since_us: int | None = None
        self._taken: list[AttemptRef] = []
        self._lost: list[AttemptRef] = []
        self.missing: set[AttemptRef] = set()

    def begin(self, held: Mapping[AttemptRef, int], done: BarrierDone) -> None:
        """Compare these: `held` attempts with the store times of their claims, and those ended."""
        self._held = list(held.items())
        self._ended = frozenset(done.ended)
        self._to_check = [ref for ref in done.ended if ref not in held]
        self._ended_since_us = self._store.latest_time_at(done.ended_since_ns)
        self._taken, self._lost, self.missing = [], [], set()

    def compare(self) -> bool:
        """One slice; returns whether there is more."""
        if self._held:
            claimed_at, rest = dict(self._held[:MAX_ROWS]), self._held[MAX_ROWS:]
            found = self._store.run(
                lambda tx: reclaims.take_back(tx, self._node, claimed_at, self._limited.retaken)
            )
            self._held = rest
            self._taken += found.taken
            self.missing.update(found.missing)
        elif self._to_check:
            part, later = self._to_check[:MAX_ROWS], self._to_check[MAX_ROWS:]
            self._lost += self._store.run(lambda tx: reclaims.take_ended(tx, self._node, part))
            self._to_check = later
        return bool(self._held or self._to_check)

    @property
    def taken(self) -> int:
        return len(self._taken) + len(self._lost)

    def report(self) -> None:
        """Log what the store has lost."""
        if self._taken:
            _log.warning("claims.taken_back", **_named(self._taken))
        if self.missing:
            _log.warning("claims.missing", **_named(self.missing))
        if self._lost:
            _log.warning("outcomes.lost", **_named(self._lost))

    def may_have_ended(self, row: ClaimedAttempt) -> bool:
        """Whether this attempt, which nobody holds, may have run and its recorded outcome be gone."""
        if self._ended_since_us is None:
            return False
        return row.ref in self._ended or row.claimed_at < self._ended_since_us

    def forget(self) -> None:
        """Everything is settled: the store has what this node has done."""
        self._ended, self._ended_since_us = frozenset(), None
        self.missing = set()


def _named(refs: Iterable[AttemptRef]) -> dict[str, Any]:
    """How many there are, and the ids of the first."""
    ids = [id_text(ref.id) for ref in refs]
    return {"count": len(ids), "jobs": ", ".join(ids[:MAX_LOGGED_IDS])}
