"""Counts of jobs by handler and status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from workerd.job import Status
from workerd.metrics import families
from workerd.store import queries
from workerd.store.base import Tx
from workerd.store.handlers import names_of_schedules

COUNT_CAP = queries.MAX_COUNT
"""Counts are exact up to here."""

CURRENT = tuple(status for status in Status if status is not Status.RETRY)
"""The statuses that a job, not only an attempt, can have."""
WAITING_AND_RUNNING = (Status.SCHEDULED, Status.NEW, Status.INPROGRESS)


@dataclass
class Depth:
    """Jobs of a handler by status; `oldest_s`: seconds since the oldest `new` one became due."""

    handler: str
    counts: dict[str, int] = field(default_factory=dict)
    oldest_s: float | None = None


def depths(
    tx: Tx, handlers: Sequence[str], states: Sequence[Status] = CURRENT, cap: int = COUNT_CAP
) -> list[Depth]:
    """The depth of each handler, in their order; counts are capped at `cap`."""
    found = {name: Depth(name) for name in handlers}
    for one in queries.counts(tx, handlers, states, cap):
        depth = found[one.handler]
        depth.counts[str(one.status)] = one.count
        if one.oldest is not None:
            depth.oldest_s = max(0, tx.now - one.oldest) / 1e6
    return list(found.values())


def depth_of_others(tx: Tx, handlers: Sequence[str], counted: Sequence[Depth]) -> Depth:
    """The live jobs of all other handlers together, as the depth of the handler `other`.

    `counted`: the depths of `handlers`. Both are capped, so that this is a lower bound above COUNT_CAP.
    """
    # The rows that stand for runs of recurring workflows belong to no handler.
    runs = sorted(names_of_schedules(tx) - set(handlers))
    own = [*counted, *depths(tx, runs, WAITING_AND_RUNNING)]
    other = Depth(families.OTHER)
    for state, total in queries.totals(tx, WAITING_AND_RUNNING).items():
        left = total - sum(depth.counts.get(str(state), 0) for depth in own)
        if left > 0:
            other.counts[str(state)] = left
    oldest = queries.oldest_new_of_others(tx, [*handlers, *runs])
    if oldest is not None:
        other.oldest_s = max(0, tx.now - oldest) / 1e6
    return other
