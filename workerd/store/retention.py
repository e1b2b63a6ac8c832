"""Retention: removes old jobs in slices along the primary key, all rows of a job together.

A job of a request is removed with the request, because later steps and a retry by hand need its rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from workerd.job import COOLER_KEY, LIVE, Status
from workerd.store import columns, errors, links, logs
from workerd.store.base import Tx
from workerd.store.columns import chunks, marks
from workerd.store.session import Row

RUNS_KEPT = 100
"""Completed rows of a recurring handler that are kept whatever their age."""


class RetentionLimits(NamedTuple):
    """Jobs that ended before these store times are removed, None: never. `completed` includes cancelled."""

    completed: int | None
    failure: int | None

    def over(self, status: str, end: int) -> bool:
        """Whether a job with this status and end may be removed."""
        if status in ("completed", "cancelled"):
            return self.completed is not None and end < self.completed
        return status in ("failure", "failed") and self.failure is not None and end < self.failure


_Failed = Counter[tuple[bytes, bytes]]
"""Deleted rows of attempts that failed, by fingerprint and handler."""


class Purged(NamedTuple):
    """Number of removed `rows`; `cursor`: where the next slice starts, None after the last."""

    rows: int
    cursor: bytes | None


class _EndedJob(NamedTuple):
    """What retention needs of an ended job."""

    id: bytes
    handler: str
    status: str
    reason: str | None
    unique_key: str | None
    request_id: bytes | None
    run_at: bytes
    end: int


_SLICE = """SELECT id, attempt, handler, status, reason, unique_key, request_id, run_at,
    COALESCE(ingested_at, finished_at, created_at) FROM workerd_jobs"""


def purge_jobs(tx: Tx, limits: RetentionLimits, *, limit: int, cursor: bytes | None = None) -> Purged:
    """Check the next `limit` rows and remove the jobs that are older than the limits."""
    rows = tx.query(
        _SLICE + (" WHERE id > %s" if cursor is not None else "") + " ORDER BY id, attempt LIMIT %s",
        [*([cursor] if cursor is not None else []), limit],
    )
    jobs = [list(group) for _, group in groupby(rows, key=lambda row: row[0])]
    full = len(rows) == limit
    if full and len(jobs) > 1:
        jobs.pop()  # it may go on beyond the slice
    elif full:
        jobs = [tx.query(_SLICE + " WHERE id = %s ORDER BY attempt", (rows[0][0],))]
    ended = [job for job in map(_ended, jobs) if job is not None and limits.over(job.status, job.end)]
    free = _without_request(tx, ended)
    kept = _kept_runs(tx, free)
    failed = _Failed()
    removed = _remove(tx, [job.id for job in free if job.id not in kept], failed)
    errors.forget(tx, failed)
    return Purged(removed, jobs[-1][0][0] if full and jobs else None)


def _ended(rows: Sequence[Row]) -> _EndedJob | None:
    current = [row for row in rows if row[3] != b"retry"]
    if len(current) != 1 or columns.lenient(current[0][3]) in LIVE:
        return None
    job_id, _, handler, status, reason, key, request_id, run_at, end = current[0]
    moment = columns.time_or_zero(end)
    text = columns.lenient
    return _EndedJob(
        job_id, text(handler) or "", text(status) or "", text(reason), text(key), request_id, run_at, moment
    )


def _without_request(tx: Tx, jobs: Sequence[_EndedJob]) -> list[_EndedJob]:
    ids = sorted({job.request_id for job in jobs if job.request_id is not None})
    there: set[bytes] = set()
    for part in chunks(ids):
        there.update(
            row[0] for row in tx.query(f"SELECT id FROM workerd_requests WHERE id IN ({marks(part)})", part)
        )
    return [job for job in jobs if job.request_id not in there]


def _kept_runs(tx: Tx, jobs: Sequence[_EndedJob]) -> set[bytes]:
    """Which of these are among the newest completed rows of a recurring handler."""
    schedules = {columns.lenient(row[0]) for row in tx.query("SELECT name FROM workerd_schedules")}
    oldest: dict[str, bytes] = {}
    kept: set[bytes] = set()
    for job in jobs:
        if job.status != Status.COMPLETED or job.handler not in schedules:
            continue
        if job.handler not in oldest:
            oldest[job.handler] = _oldest_kept(tx, job.handler)
        if job.run_at >= oldest[job.handler]:
            kept.add(job.id)
    return kept


def _oldest_kept(tx: Tx, handler: str) -> bytes:
    row = tx.one(
        f"SELECT run_at FROM workerd_jobs {tx.dialect.hint('workerd_holder')}"
        " WHERE status = 'completed' AND holder = %s AND priority = 0"
        " ORDER BY run_at DESC LIMIT 1 OFFSET %s",
        (handler, RUNS_KEPT - 1),
    )
    oldest: bytes = row[0] if row is not None else b""
    return oldest


def purge_runs(tx: Tx, name: str, *, limit: int) -> int:
    """Remove all but the newest completed runs of an interval, whatever their age; returns the rows removed.

    Otherwise an interval of milliseconds would fill the table.
    """
    rows = tx.query(
        f"SELECT id, unique_key FROM workerd_jobs {tx.dialect.hint('workerd_holder')}"
        " WHERE status = 'completed' AND holder = %s AND priority = 0"
        " ORDER BY run_at DESC LIMIT %s OFFSET %s",
        (name, limit, RUNS_KEPT),
    )
    failed = _Failed()
    removed = _remove(tx, [job_id for job_id, key in rows if key == COOLER_KEY.encode()], failed)
    errors.forget(tx, failed)
    return removed


def purge_requests(tx: Tx, limits: RetentionLimits, *, limit: int) -> int:
    """Remove about `limit` rows of old requests and their jobs; returns the rows removed.

    The last run of a schedule is kept: it tells whether the next may start.
    """
    removed, failed = 0, _Failed()
    for status, before in (
        ("completed", limits.completed),
        ("cancelled", limits.completed),
        ("failed", limits.failure),
    ):
        if before is None or removed >= limit:
            continue
        rows = tx.query(
            f"SELECT id FROM workerd_requests {tx.dialect.hint('workerd_request_status')}"
            " WHERE status = %s AND created_at < %s AND COALESCE(completed_at, created_at) < %s"
            " AND id NOT IN (SELECT last_job FROM workerd_schedules WHERE last_job IS NOT NULL)"
            f" ORDER BY created_at LIMIT %s{tx.dialect.skip_locked}",
            (status, columns.at(before), columns.at(before), limit),
        )
        for (request_id,) in rows:
            removed += _remove_request(tx, request_id, limit, failed)
            if removed >= limit:
                break
    errors.forget(tx, failed)  # once all others are deleted: as in the closing, nothing is locked after them
    return removed


def _remove_request(tx: Tx, request_id: bytes, limit: int, failed: _Failed) -> int:
    ids = tx.query(
        f"SELECT DISTINCT id FROM workerd_jobs {tx.dialect.hint('workerd_request')}"
        " WHERE request_id = %s LIMIT %s",
        (request_id, limit),
    )
    if tx.one("SELECT 1 FROM workerd_request_jobs WHERE request_id = %s LIMIT 1", (request_id,)):
        links.remove(tx, [row[0] for row in ids])
    removed = _remove(tx, [row[0] for row in ids], failed)
    left = tx.one(
        f"SELECT 1 FROM workerd_jobs {tx.dialect.hint('workerd_request')} WHERE request_id = %s LIMIT 1",
        (request_id,),
    )
    if left is None:
        tx.execute("DELETE FROM workerd_signals WHERE request_id = %s", (request_id,))
        removed += tx.execute("DELETE FROM workerd_requests WHERE id = %s", (request_id,))
    return removed


def _remove(tx: Tx, ids: Sequence[bytes], failed: _Failed) -> int:
    """Delete all rows of these jobs, unless they were retried meanwhile or another transaction locks one.

    Those that failed are added to `failed`.
    """
    removed = 0
    for part in chunks(sorted(ids), 200):
        rows, locked = columns.lock_free(
            tx,
            f"SELECT id, attempt, status, fingerprint, handler FROM workerd_jobs"
            f" WHERE id IN ({marks(part)}) ORDER BY id, attempt",
            part,
        )
        kept = {row[0] for row in rows if columns.lenient(row[2]) in LIVE} | {row[0] for row in locked}
        rows = {row for row in rows if row[0] not in kept}
        failed.update((row[3], row[4]) for row in rows if row[3] is not None)
        keys = sorted((row[0], row[1]) for row in rows)
        for some in chunks(keys):
            removed += tx.execute(f"DELETE FROM workerd_jobs WHERE {columns.keys(some)}")
            logs.remove(tx, some)
    return removed
