"""Counts of jobs by handler and status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from workerd.job import Status
from workerd.store import queries
from workerd.store.base import Tx

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
