"""The table `workerd_audit`: who changed what. Its ids are UUIDv7 of the store's clock, in its order."""

from __future__ import annotations

import os
from typing import NamedTuple

from workerd.store import columns
from workerd.store.base import Tx
from workerd.store.session import Row

_COLUMNS = "id, at, actor, role, via, action, target, detail, address"
MAX_ADDRESS = 64
MAX_TARGET = 191
"""Characters of the columns."""


class AuditRow(NamedTuple):
    """One act; `at`: store time in microseconds; `detail`: JSON text."""

    id: bytes
    at: int
    actor: str
    role: str
    via: str
    action: str
    target: str | None
    detail: bytes | None
    address: str | None


def insert(
    tx: Tx,
    *,
    actor: str,
    role: str,
    via: str,
    action: str,
    target: str | None,
    detail: str | None,
    address: str | None,
) -> None:
    """Record an act of this transaction."""
    now = tx.now
    tx.execute(
        f"INSERT INTO workerd_audit ({_COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            _id(now), columns.at(now), actor[:191], role, via, action,
            None if target is None else target[:MAX_TARGET], detail,
            None if address is None else address[:MAX_ADDRESS],
        ),
    )  # fmt: skip


def _id(us: int) -> bytes:
    """A UUIDv7 of this time, with its microseconds behind the milliseconds (RFC 9562, method 3)."""
    milliseconds, rest = divmod(us, 1000)
    random = int.from_bytes(os.urandom(8)) & ((1 << 62) - 1)
    return ((milliseconds << 80) | (7 << 76) | (rest << 66) | (2 << 62) | random).to_bytes(16)


def _first_id(us: int) -> bytes:
    """What no id of this time or later is less than."""
    return (max(0, us) // 1000 << 80).to_bytes(16)


def list_(
    tx: Tx,
    *,
    actor: str | None = None,
    target: str | None = None,
    since: int | None = None,
    limit: int,
    after: str | None = None,
) -> columns.Page[AuditRow]:
    """Acts, newest first: a range of the primary key, or of one of the indexes. Raises InvalidValue."""
    where: list[str] = ["id < %s"]
    params: list[object] = [b"\xff" * 16 if after is None else columns.read_cursor(after)[1]]
    if since is not None:
        where.append("id >= %s")
        params.append(_first_id(since))
    hint = ""
    for name, value in (("actor", actor), ("target", target)):
        if value is not None:
            where.append(f"{name} = %s")
            params.append(value)
            hint = tx.dialect.hint(f"workerd_audit_{name}")
    rows = tx.query(
        f"SELECT {_COLUMNS} FROM workerd_audit {hint} WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT %s",
        [*params, limit + 1],
    )
    found = [_row(row) for row in rows[:limit]]
    last = found[-1] if len(rows) > limit else None
    return columns.Page(found, None if last is None else columns.cursor_text(last.at, last.id))


def of_job(tx: Tx, job_id: str, handler: str, since: int, *, limit: int) -> list[AuditRow]:
    """The newest acts on a job made at `since`, newest first, with those that found it by a filter."""
    found: list[Row] = []
    for condition, params in (
        ("target = %s AND id >= %s", [job_id, _first_id(since)]),
        # The acts on many jobs name these in their detail.
        ("target = %s AND id >= %s AND INSTR(detail, %s) > 0", [handler, _first_id(since), job_id]),
        ("target IS NULL AND id >= %s AND INSTR(detail, %s) > 0", [_first_id(since), job_id]),
    ):
        found += tx.query(
            f"SELECT {_COLUMNS} FROM workerd_audit {tx.dialect.hint('workerd_audit_target')}"
            f" WHERE {condition} ORDER BY id DESC LIMIT %s",
            [*params, limit],
        )
    return [_row(row) for row in sorted(found, reverse=True)[:limit]]


def purge(tx: Tx, before: int, *, limit: int) -> int:
    """Remove at most `limit` acts from before this store time, the oldest first; returns how many."""
    rows = tx.query(
        "SELECT id FROM workerd_audit WHERE id < %s ORDER BY id LIMIT %s", (_first_id(before), limit)
    )
    ids = [row[0] for row in rows]
    for part in columns.chunks(ids):
        tx.execute(f"DELETE FROM workerd_audit WHERE id IN ({columns.marks(part)})", part)
    return len(ids)


def _row(row: Row) -> AuditRow:
    job_id, at, actor, role, via, action, target, detail, address = row
    text = columns.lenient
    return AuditRow(
        job_id, columns.time_or_zero(at), text(actor) or "", text(role) or "", text(via) or "",
        text(action) or "", text(target), detail, text(address),
    )  # fmt: skip
