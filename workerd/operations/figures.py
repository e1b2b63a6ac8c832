"""How many jobs wait and run, by handler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from workerd.job import Status
from workerd.store import queries
from workerd.store.base import Tx

COUNT_CAP = queries.MAX_COUNT
"""Counts are exact up to here."""

WAITING_AND_RUNNING = (Status.SCHEDULED, Status.NEW, Status.INPROGRESS)


@dataclass
class Depth:
    """Jobs of a handler by status; `oldest_s`: seconds since the oldest `new` one became due."""

    handler: str
    counts: dict[str, int] = field(default_factory=dict)
    oldest_s: float | None = None


def depths(
    tx: Tx, handlers: Sequence[str], states: Sequence[Status] | None = None, cap: int = COUNT_CAP
) -> list[Depth]:
    """The depth of each handler, counts capped at `cap`; `states` None: all but `retry`."""
    found = {name: Depth(name) for name in handlers}
    counts = (
        queries.counts(tx, handlers, cap=cap) if states is None else queries.counts(tx, handlers, states, cap)
    )
    for one in counts:
        depth = found[one.handler]
        depth.counts[str(one.status)] = one.count
        if one.oldest is not None:
            depth.oldest_s = max(0, tx.now - one.oldest) / 1e6
    return list(found.values())
