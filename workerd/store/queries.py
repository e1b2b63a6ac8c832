"""Reading jobs: one, counts, payloads; counts never scan the table, but read a few ranges of an index."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from workerd.errors import NotFound
from workerd.job import ENDED, AttemptRef, Status
from workerd.store import columns
from workerd.store.base import Tx
from workerd.store.claims import MAX_JOB_BYTES
from workerd.store.columns import JobRow, attempts, jobs_by_key

MAX_COUNT = 10_000
"""Counts are exact up to this number, and cut off there."""

MAX_PRIORITIES = 32
"""Distinct priorities of one handler and status that are queried one by one."""

_CURRENT = (*(s for s in Status if s is not Status.RETRY),)


class StoredJob(msgspec.Struct, kw_only=True):
    """A job: its current row, and all its attempts, oldest first, including that row."""

    row: JobRow
    attempts: list[JobRow]


class Count(msgspec.Struct, frozen=True):
    """Jobs of a handler in a status, at most MAX_COUNT; `oldest`: since when the first `new` one is due."""

    handler: str
    status: Status
    count: int
    oldest: int | None = None


def get(tx: Tx, job_id: bytes, *, payload: bool = True) -> StoredJob:
    """A job with its attempts. Raises NotFound."""
    rows = attempts(tx, job_id, payload=payload)
    if not rows:
        raise NotFound("Job not found. `workerd job list` lists existing jobs.")
    current = next((row for row in reversed(rows) if row.status != Status.RETRY), rows[-1])
    made = columns.created(tx, job_id, rows)
    return StoredJob(row=msgspec.structs.replace(current, created_at=made), attempts=rows)


def first_attempts(tx: Tx, ids: Sequence[bytes]) -> dict[bytes, JobRow]:
    """The first attempts of these jobs, as they were enqueued, as far as they exist."""
    refs = [AttemptRef(job_id, 1) for job_id in ids]
    return {ref.id: row for ref, row in jobs_by_key(tx, refs, most=MAX_JOB_BYTES).items()}


def ended(tx: Tx, job_id: bytes) -> bool:
    """Whether the job has ended. Raises NotFound."""
    rows = tx.query("SELECT status FROM workerd_jobs WHERE id = %s ORDER BY attempt DESC LIMIT 1", (job_id,))
    if not rows:
        raise NotFound("Job not found. `workerd job list` lists existing jobs.")
    return columns.lenient(rows[0][0]) in ENDED


def payload(tx: Tx, job_id: bytes) -> tuple[bytes, str]:
    """The payload and its type, `bytes` or `json`. Raises NotFound if there is none yet."""
    row = tx.one(
        "SELECT payload, payload_type FROM workerd_jobs WHERE id = %s AND status <> 'retry' LIMIT 1",
        (job_id,),
    )
    if row is None:
        raise NotFound("Job not found. `workerd job list` lists existing jobs.")
    if row[0] is None:
        raise NotFound("The job has returned nothing yet.")
    return row[0], columns.lenient(row[1]) or "bytes"


def preview(tx: Tx, job_id: bytes, most: int) -> tuple[bytes, int, str] | None:
    """The first `most` bytes of the payload, its total size and its type; None without a payload."""
    row = tx.one(
        "SELECT SUBSTR(payload, 1, %s), LENGTH(payload), payload_type FROM workerd_jobs"
        " WHERE id = %s AND status <> 'retry' AND payload IS NOT NULL LIMIT 1",
        (most, job_id),
    )
    # SUBSTR of an empty blob is NULL in SQLite.
    return None if row is None else (row[0] or b"", int(row[1]), columns.lenient(row[2]) or "bytes")


def priorities(tx: Tx, handler: str, state: Status) -> list[int]:
    """The distinct priorities of a handler's rows in a status: one index lookup for each."""
    sql = (
        f"SELECT priority FROM workerd_jobs {tx.dialect.hint('workerd_claim')}"
        " WHERE handler = %s AND status = %s AND priority > %s ORDER BY priority LIMIT 1"
    )
    found: list[int] = []
    last = -(1 << 31) - 1
    while len(found) < MAX_PRIORITIES:
        row = tx.one(sql, (handler, str(state), last))
        if row is None:
            break
        last = int(row[0])
        found.append(last)
    return found


# -- counts ------------------------------------------------------------------------------------


def waiting(tx: Tx, handler: str, most: int) -> int:
    """Number of `new` and `scheduled` jobs of the handler, at most `most`."""
    counts = _counts(tx, [(handler, Status.NEW), (handler, Status.SCHEDULED)], most)
    return min(most, sum(counts))


def counts(
    tx: Tx, handlers: Sequence[str], states: Sequence[Status] = _CURRENT, cap: int = MAX_COUNT
) -> list[Count]:
    """Jobs of each handler in each status, without zeros."""
    pairs = [(handler, state) for handler in handlers for state in states]
    found = []
    for (handler, state), count in zip(pairs, _counts(tx, pairs, cap), strict=True):
        if count:
            oldest = oldest_new(tx, handler) if state is Status.NEW else None
            found.append(Count(handler, state, count, oldest))
    return found


def _counts(tx: Tx, pairs: Sequence[tuple[str, Status]], cap: int) -> list[int]:
    one = (
        f"SELECT COUNT(*) FROM (SELECT 1 FROM workerd_jobs {tx.dialect.hint('workerd_claim')}"
        " WHERE handler = %s AND status = %s LIMIT %s) AS c"
    )
    return [int(tx.query(one, (handler, str(state), cap))[0][0]) for handler, state in pairs]


def totals(tx: Tx, states: Sequence[Status], cap: int = MAX_COUNT) -> dict[Status, int]:
    """Jobs of all handlers together in each status, each count at most `cap`."""
    one = (
        f"SELECT COUNT(*) FROM (SELECT 1 FROM workerd_jobs {tx.dialect.hint('workerd_due')}"
        " WHERE status = %s LIMIT %s) AS c"
    )
    return {state: int(tx.query(one, (str(state), cap))[0][0]) for state in states}


def oldest_new_of_others(tx: Tx, handlers: Sequence[str], cap: int = MAX_COUNT) -> int | None:
    """Since when the oldest `new` job of any other handler is due; the `cap` oldest are looked at."""
    marks = ", ".join(["%s"] * len(handlers)) or "NULL"
    row = tx.one(
        "SELECT MIN(o.run_at) FROM (SELECT handler, run_at FROM workerd_jobs"
        f" {tx.dialect.hint('workerd_due')} WHERE status = 'new' ORDER BY run_at LIMIT %s) AS o"
        f" WHERE o.handler NOT IN ({marks})",
        (cap, *handlers),
    )
    return None if row is None or row[0] is None else columns.time_or_zero(row[0])


def oldest_new(tx: Tx, handler: str) -> int | None:
    """Since when the handler's oldest claimable job is due, None without one."""
    sql = (
        f"SELECT priority, run_at FROM workerd_jobs {tx.dialect.hint('workerd_claim')}"
        " WHERE handler = %s AND status = 'new' AND priority > %s ORDER BY priority, run_at LIMIT 1"
    )
    oldest: int | None = None
    last = -(1 << 31) - 1
    for _ in range(MAX_PRIORITIES):
        row = tx.one(sql, (handler, last))
        if row is None:
            break
        last = int(row[0])
        moment = columns.time_or_zero(row[1])
        oldest = moment if oldest is None else min(oldest, moment)
    return oldest


def ended_of(tx: Tx, ids: Sequence[bytes]) -> set[bytes]:
    """Which of these jobs have ended; one statement for all waiting callers."""
    if not ids:
        return set()
    marks = ", ".join(["%s"] * len(ids))
    rows = tx.query(
        f"SELECT id FROM workerd_jobs WHERE id IN ({marks})"
        " AND status IN ('completed', 'failure', 'cancelled')",
        list(ids),
    )
    return {row[0] for row in rows}
