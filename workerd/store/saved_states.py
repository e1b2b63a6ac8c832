"""The column `state`: what a running attempt has saved, kept for the attempt that follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from workerd import clock
from workerd.job import AttemptRef, Status
from workerd.messages import StateSaved
from workerd.store import columns
from workerd.store.base import Tx
from workerd.store.outcomes import ClosedBatch
from workerd.store.session import Row

_INPROGRESS = Status.INPROGRESS.encode()


class Written(NamedTuple):
    """What was stored, and what belongs to attempts that are not this node's any more.

    Neither: its row is locked by another transaction.
    """

    stored: list[StateSaved]
    foreign: list[StateSaved]


def write(tx: Tx, saved: Sequence[StateSaved], node_id: bytes) -> Written:
    """Store what running attempts of this incarnation have saved; waits for no lock."""
    by_ref = {one.ref: one for one in saved}
    rows = columns.lock_free(
        tx,
        "SELECT id, attempt, status, node_id, claimed_at FROM workerd_jobs"
        f" WHERE {columns.keys(by_ref)} ORDER BY id, attempt",
    )
    held = {AttemptRef(*row[:2]) for row in rows.ours if _is_held(row, by_ref, node_id)}
    locked = {AttemptRef(*row[:2]) for row in rows.others}
    for ref in sorted(held):
        one = by_ref[ref]
        tx.execute(
            "UPDATE workerd_jobs SET state = %s, started_at = %s, pid = %s WHERE id = %s AND attempt = %s",
            (one.state, clock.to_text(max(one.started_at, one.claimed_at)), one.pid, *ref),
        )
    return Written(
        stored=[one for one in saved if one.ref in held],
        foreign=[one for one in saved if one.ref not in held and one.ref not in locked],
    )


def _is_held(row: Row, by_ref: dict[AttemptRef, StateSaved], node_id: bytes) -> bool:
    claimed_at = by_ref[AttemptRef(*row[:2])].claimed_at
    return row[2] == _INPROGRESS and row[3] == node_id and columns.time_or_zero(row[4]) == claimed_at


def settle(tx: Tx, batch: ClosedBatch) -> None:
    """Leave in the rows of ended attempts what each saved last, or nothing after a success.

    Before their next attempts are inserted, which copy it.
    """
    for outcome in (ended.outcome for ended in batch.ended):
        if outcome.state is not None:
            tx.execute(
                "UPDATE workerd_jobs SET state = %s WHERE id = %s AND attempt = %s",
                (outcome.state or None, *outcome.ref),
            )
