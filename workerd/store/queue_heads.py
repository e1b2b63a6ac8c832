"""The first jobs of the queues of groups: what a claim knows of them, reads, and learns."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from workerd.fairness import FairTurns, Waiting
from workerd.job import AttemptRef
from workerd.store import group_queues
from workerd.store.base import Tx
from workerd.store.claim_window import FloodQueue
from workerd.store.limit_room import LimitRoom

MAX_QUEUES = 500
"""Queues of groups of which one claim reads the first rows."""
SPARE_QUEUES = 16
"""Of these, beyond one for each row wanted: what is known of some is out of date."""
FEW_QUEUES = 4
"""Of so many, all rows that are wanted are read of each."""


class QueueHeads(NamedTuple):
    """The first jobs of the queues of groups that are known. `scan`: look for others, from `cursor` on."""

    heads: Mapping[str, Waiting]
    scan: bool
    cursor: str | None

    @property
    def only(self) -> str | None:
        """The group that alone has a queue, as far as is known."""
        return next(iter(self.heads)) if len(self.heads) == 1 and not self.scan else None


class QueueRows(NamedTuple):
    """The first jobs of queues of groups, as far as they were read.

    last
        The greatest priority that may be started: those that were not read may come before greater ones.
        None if all were read.
    """

    queues: Mapping[str, list[Waiting]]
    last: int | None


def read(
    tx: Tx,
    handler: str,
    heads: Mapping[str, Waiting],
    fitting: int,
    room: LimitRoom | None,
    turns: FairTurns | None,
) -> QueueRows:
    """The first jobs of the queues whose turn may be, of which up to `fitting` will start."""
    count = min(MAX_QUEUES, fitting + SPARE_QUEUES)
    first = heapq.nsmallest(
        count + 1,
        heads,
        lambda g: (heads[g].priority, turns.next_start(g) if turns else 0.0, heads[g].run_at),
    )
    probed, unread = first[:count], first[count:]
    if not probed:
        return QueueRows({}, None)
    most_urgent = [g for g in probed if heads[g].priority == heads[probed[0]].priority]
    wanted = dict.fromkeys(probed, _rows_of_each(len(probed), fitting))
    wanted |= dict.fromkeys(most_urgent, _rows_of_each(len(most_urgent), fitting))  # all may be of these
    most = wanted if room is None else {g: room.of_group(g, rows) for g, rows in wanted.items()}
    found = group_queues.first(tx, handler, most)
    ends = [jobs[-1] for g, jobs in found.items() if len(jobs) >= wanted[g]]
    last = min((job.priority for job in (*ends, *map(heads.__getitem__, unread))), default=None)
    return QueueRows(found, last)


def _rows_of_each(queues: int, fitting: int) -> int:
    return fitting if queues <= FEW_QUEUES else max(1, 2 * -(-fitting // queues))


def of_flood(queue: FloodQueue, wanted: int) -> QueueRows:
    """What was read of the queue of one group alone, of which `wanted` rows were asked for."""
    jobs = sorted(map(group_queues.waiting, queue.rows))
    return QueueRows({queue.group: jobs}, jobs[-1].priority if len(jobs) >= wanted else None)


def after(
    queues: Mapping[str, Sequence[Waiting]], started: Collection[AttemptRef]
) -> dict[str, Waiting | None]:
    """What is known of the first jobs of these queues once those have started; None of an empty queue."""
    # Where all that were read have started, the first one is behind the last of them.
    return {
        group: next((job for job in jobs if job.ref not in started), jobs[-1] if jobs else None)
        for group, jobs in queues.items()
    }


def add(
    learned: dict[str, Waiting | None], known: Mapping[str, Waiting], parked: Mapping[str, Sequence[Waiting]]
) -> None:
    """Learn of jobs that were put into queues; `known`: the first ones as far as they were known before."""
    for group, jobs in parked.items():
        before = learned[group] if group in learned else known.get(group)
        learned[group] = min(jobs if before is None else [before, *jobs])
