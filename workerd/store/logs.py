"""Logs kept with attempts: a table of their own, so that the rows of jobs stay short."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from workerd.store import columns
from workerd.store.base import Tx
from workerd.store.columns import chunks
from workerd.store.outcomes import ClosedBatch


class LogRow(NamedTuple):
    """The log of one attempt; `dropped`: bytes of it that were left out, which the text says where."""

    attempt: int
    text: str
    dropped: int


def insert(tx: Tx, batch: ClosedBatch) -> None:
    """Keep the logs of the attempts whose end took effect. Locks nothing that exists."""
    rows = [e.outcome for e in batch.ended if e.outcome.log is not None]
    for part in chunks(rows):
        params = [value for o in part for value in (o.id, o.attempt, o.log, o.log_dropped)]
        tx.execute(
            "INSERT INTO workerd_logs (id, attempt, text, dropped)"
            f" VALUES {', '.join(['(%s, %s, %s, %s)'] * len(part))}" + tx.dialect.keep_existing("id"),
            params,
        )


def get(tx: Tx, job_id: bytes, attempt: int | None = None) -> LogRow | None:
    """The log of this attempt, None: of the newest one that has a log."""
    which, params = ("", (job_id,)) if attempt is None else (" AND attempt = %s", (job_id, attempt))
    row = tx.one(
        f"SELECT attempt, text, dropped FROM workerd_logs WHERE id = %s{which} ORDER BY attempt DESC LIMIT 1",
        params,
    )
    return None if row is None else LogRow(row[0], columns.lenient(row[1]) or "", row[2])


def attempts_with_log(tx: Tx, job_id: bytes) -> list[int]:
    """The attempts of a job that have one, newest first."""
    sql = "SELECT attempt FROM workerd_logs WHERE id = %s ORDER BY attempt DESC LIMIT %s"
    return [row[0] for row in tx.query(sql, (job_id, columns.MAX_ATTEMPTS))]


def remove(tx: Tx, keys: Iterable[tuple[bytes, int]]) -> None:
    """Delete the logs of these attempts."""
    tx.execute(f"DELETE FROM workerd_logs WHERE {columns.keys(keys)}")
