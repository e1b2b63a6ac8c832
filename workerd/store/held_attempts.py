"""The attempts that a node holds: rows `inprogress` for one of its incarnations."""

from __future__ import annotations

import msgspec

from workerd import clock
from workerd.job import COOLER_KEY, HeldAttempt
from workerd.store import columns, slots
from workerd.store.base import Tx
from workerd.store.claims import NO_NODE, holder
from workerd.store.session import Row

_HELD = """SELECT id, attempt, claimed_at, handler, failures, crashes, losses, max_attempts, unique_key,
    request_id, step, name, started_at, pid FROM workerd_jobs {index}
    WHERE status = 'inprogress' AND holder = %s ORDER BY id, attempt{limit}"""


def held(tx: Tx, node_id: bytes, limit: int | None = None) -> list[HeldAttempt]:
    """The rows that are `inprogress` for this incarnation, at most `limit`.

    Without those that were not claimed by workerd.
    """
    sql = _HELD.format(index=tx.dialect.hint("workerd_holder"), limit="" if limit is None else " LIMIT %s")
    found = tx.query(sql, (holder(node_id),) if limit is None else (holder(node_id), limit))
    attempts = [_held_attempt(row) for row in found if _is_claimed(row)]
    uses = slots.uses(tx, [attempt.ref for attempt in attempts])
    return [
        msgspec.structs.replace(attempt, limited=uses[attempt.ref]) if attempt.ref in uses else attempt
        for attempt in attempts
    ]


def _is_claimed(row: Row) -> bool:
    """Whether the time of its claim is as a claim writes it, so that an outcome can name it."""
    claimed_at = columns.lenient_time(row[2])
    return claimed_at is not None and clock.to_text(claimed_at) == columns.lenient(row[2])


def adopt(tx: Tx, node_id: bytes) -> int:
    """Date the attempts of a dead incarnation that workerd did not claim, so that `held` returns them.

    An INSERT can write `inprogress` without a time of claim or without a node. Returns their number.
    """
    where = "holder = %s"
    if node_id == NO_NODE:
        # The runs of a recurring workflow are in progress on no node.
        where = f"(holder = %s OR holder = '' AND (unique_key IS NULL OR unique_key <> '{COOLER_KEY}'))"
    rows = tx.query(
        f"SELECT id, attempt, claimed_at, node_id FROM workerd_jobs {tx.dialect.hint('workerd_holder')}"
        f" WHERE status = 'inprogress' AND {where}",
        (holder(node_id),),
    )
    keys = [(row[0], row[1]) for row in rows if row[3] is None or not _is_claimed(row)]
    for part in columns.chunks(keys):
        sql = f"UPDATE workerd_jobs SET node_id = %s, claimed_at = %s WHERE {columns.keys(part)}"
        tx.execute(sql, (node_id, columns.at(tx.now)))
    return len(keys)


def _held_attempt(row: Row) -> HeldAttempt:
    # Lenient: even a row that cannot be read in full must be settled.
    return HeldAttempt(
        id=row[0],
        attempt=row[1],
        claimed_at=columns.time(row[2]),
        handler=columns.lenient(row[3]) or "",
        failures=row[4],
        crashes=row[5],
        losses=row[6],
        max_attempts=row[7],
        unique_key=columns.lenient(row[8]),
        request_id=row[9],
        step=row[10],
        name=columns.lenient(row[11]),
        started_at=columns.lenient_time(row[12]),
        pid=row[13],
    )
