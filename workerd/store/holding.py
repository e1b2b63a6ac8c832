"""What the store says a node holds: for settlement and rescue."""

from __future__ import annotations

import msgspec

from workerd.job import Key
from workerd.store import dialect, values
from workerd.store.connection import Row, Tx


class HeldRow(msgspec.Struct, frozen=True, gc=False):
    """A row that is `inprogress` for an incarnation, with what deciding about its end needs."""

    id: bytes
    attempt: int
    claimed_at: int
    handler: str
    failures: int
    crashes: int
    losses: int
    max_attempts: int | None
    unique_key: str | None
    request_id: bytes | None
    step: int | None
    name: str | None
    cancel_requested: bool

    @property
    def key(self) -> Key:
        return self.id, self.attempt


# A row without claimed_at was never claimed by workerd: no statement of ours could close it.
_HELD = """SELECT id, attempt, claimed_at, handler, failures, crashes, losses, max_attempts, unique_key,
    request_id, step, name, cancel_requested_at FROM workerd_jobs {index}
    WHERE node_id = %s AND status = 'inprogress' AND claimed_at IS NOT NULL ORDER BY id, attempt{limit}"""


def held(tx: Tx, node_id: bytes, limit: int | None = None) -> list[HeldRow]:
    """All claims of this incarnation that the store has, or the first `limit` of them."""
    sql = _HELD.format(index=dialect.of(tx).node_index, limit="" if limit is None else " LIMIT %s")
    return [_row(row) for row in tx.query(sql, (node_id,) if limit is None else (node_id, limit))]


def _row(row: Row) -> HeldRow:
    # Lenient: a row that cannot be read in full must be settled all the same.
    return HeldRow(
        id=row[0],
        attempt=row[1],
        claimed_at=values.time(row[2]),
        handler=values.lenient(row[3]) or "",
        failures=row[4],
        crashes=row[5],
        losses=row[6],
        max_attempts=row[7],
        unique_key=values.lenient(row[8]),
        request_id=row[9],
        step=row[10],
        name=values.lenient(row[11]),
        cancel_requested=row[12] is not None,
    )
