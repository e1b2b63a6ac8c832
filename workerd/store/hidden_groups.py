"""Groups whose jobs stand between those of others, where no claim looks: a walk through a handler's queue.

A claim looks at the first and the last rows of the queue. Of what stands between, the first jobs of each
group that is met are moved into its own queue, where the next claim finds them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from workerd.fairness import Waiting
from workerd.job import AttemptRef
from workerd.store import columns, group_queues
from workerd.store.base import Tx
from workerd.store.claim_window import LimitedHandler
from workerd.store.session import Row

MAX_ROWS = 500
"""That one step of a walk reads, in 2 ms: a claim may be waiting for it."""
MAX_PARKED = 200
"""Jobs of one group that it moves."""


class Place(NamedTuple):
    """The row at which the next step goes on. `tie`: what orders rows of one time in the index."""

    priority: int
    run_at: str
    tie: Any


class Step(NamedTuple):
    """What one step of a walk has moved, by group; `place`: where the next goes on, None at the end."""

    parked: Mapping[str, list[Waiting]]
    place: Place | None


def walk(tx: Tx, handler: LimitedHandler, passed: Container[str], place: Place | None) -> Step:
    """One step, from `place` on: park the first jobs of groups other than those to be passed.

    Rows whose group is still to be filled from their vars are passed too. Locks job rows that nobody has
    locked.
    """
    rows = _rows(tx, handler.name, place)
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row[4] is None and handler.template is not None:
            continue
        group = group_queues.group_of(row[4])
        if group not in passed and len(groups[group]) < MAX_PARKED:
            groups[group].append(row)
    group_of = {AttemptRef(*row[:2]): group for group, found in groups.items() for row in found}
    free = _lock(tx, handler.name, group_of)
    group_queues.park(tx, handler.name, {ref: group for ref, group in group_of.items() if ref in free})
    parked = {
        group: [group_queues.waiting(row) for row in found if row[:2] in free]
        for group, found in groups.items()
    }
    last = rows[-1] if len(rows) >= MAX_ROWS else None
    return Step(
        {group: jobs for group, jobs in parked.items() if jobs},
        None if last is None else Place(int(last[2]), columns.lenient(last[3]) or "", last[5]),
    )


def _rows(tx: Tx, handler: str, place: Place | None) -> list[Row]:
    tie = "id" if tx.dialect.index_ends_with_id else "rowid"
    behind, params = "", list[Any]()
    if place is not None:
        priority, run_at, last = place
        behind = (
            " AND (priority > %s OR (priority = %s AND run_at > %s)"
            f" OR (priority = %s AND run_at = %s AND {tie} > %s))"
        )
        params = [priority, priority, run_at, priority, run_at, last]
    return tx.query(
        f"SELECT id, attempt, priority, run_at, group_key, {tie} FROM workerd_jobs"
        f" {tx.dialect.hint('workerd_holder')} WHERE status = 'new' AND holder = %s{behind}"
        f" ORDER BY priority, run_at, {tie} LIMIT %s",
        [handler, *params, MAX_ROWS],
    )


def _lock(tx: Tx, handler: str, refs: Mapping[AttemptRef, str]) -> set[tuple[Any, ...]]:
    """Those of these rows that wait in the handler's queue still, locked."""
    free: set[tuple[Any, ...]] = set()
    for part in columns.chunks(list(refs)):
        found = tx.query(
            f"SELECT id, attempt FROM workerd_jobs {tx.dialect.by_key} WHERE ({columns.keys(part)})"
            f" AND status = 'new' AND holder = %s{tx.dialect.skip_locked}",
            [handler],
        )
        free.update(found)
    return free
