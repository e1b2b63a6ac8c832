"""Jobs that have not begun in time: ended as `cancelled`, reason `expired`, by a sweep or at the claim.

A job's own `expires_at` stands in the index of due rows while it is `new`. A handler's own `expires` counts
from `run_at`, so those of its jobs that are over are the first ones of each of its priorities.
"""

from __future__ import annotations

from collections.abc import Sequence

from workerd import clock
from workerd.job import COOLER_KEY, ClaimedAttempt
from workerd.outcome import ClosedAttempt, expired
from workerd.store import columns, duplicates, group_queues, workflows
from workerd.store.base import Tx
from workerd.store.outcomes import ClosedBatch, closed_attempt
from workerd.store.session import Row
from workerd.text import seconds_text

MAX_PRIORITIES = 100
"""Of one handler in one sweep; each costs a look-up of its first row."""


def is_over(attempt: int, run_at: int, expires_at: int | None, expires_us: int | None, now: int) -> bool:
    """Whether this attempt, which is waiting, is to begin no more; `expires_us`: the handler's own."""
    if expires_at is not None:
        return expires_at <= now
    return expires_us is not None and attempt == 1 and run_at + expires_us <= now


def sentence(run_at: int, expires_at: int, now: int) -> str:
    """Why it ended."""
    allowed = seconds_text(max(0, expires_at - run_at) / clock.SECOND)
    waited = seconds_text(max(0, now - run_at) / clock.SECOND)
    return f"It was to begin within {allowed} and had not after {waited}."


def sweep(tx: Tx, limit: int) -> int:
    """End up to `limit` jobs whose `expires_at` has passed; how many there were."""
    rows = tx.query(
        f"SELECT id, attempt FROM workerd_jobs {tx.dialect.hint('workerd_scheduled')}"
        " WHERE due_at <= %s AND status = 'new' ORDER BY due_at LIMIT %s",
        (columns.at(tx.now), limit),
    )
    _end(tx, rows, None)
    return len(rows)


def sweep_handler(tx: Tx, handler: str, expires_us: int, limit: int) -> int:
    """End up to `limit` jobs of a handler without an `expires_at` of their own; how many there were."""
    over = columns.at(max(0, tx.now - expires_us))
    found: list[Row] = []
    for holder in (handler, *group_queues.first_names(tx, handler)):
        if len(found) >= limit:
            break
        found += _over(tx, holder, over, limit - len(found))
    _end(tx, found, expires_us)
    return len(found)


def _over(tx: Tx, holder: str, over: str | None, limit: int) -> list[Row]:
    """The first attempts of jobs in this queue that were due before `over`, priority by priority."""
    index = tx.dialect.hint("workerd_holder")
    found: list[Row] = []
    after = -(2**31) - 1
    for _ in range(MAX_PRIORITIES):
        first = tx.one(
            f"SELECT priority FROM workerd_jobs {index} WHERE status = 'new' AND holder = %s"
            " AND priority > %s ORDER BY priority LIMIT 1",
            (holder, after),
        )
        if first is None or len(found) >= limit:
            break
        after = first[0]
        found += tx.query(
            f"SELECT id, attempt FROM workerd_jobs {index} WHERE status = 'new' AND holder = %s"
            " AND priority = %s AND run_at <= %s AND attempt = 1 AND expires_at IS NULL"
            " AND (unique_key IS NULL OR unique_key <> %s) ORDER BY run_at LIMIT %s",
            (holder, after, over, COOLER_KEY, limit - len(found)),
        )
    return found


def _end(tx: Tx, keys: Sequence[Row], expires_us: int | None) -> None:
    """End these attempts unless they have begun meanwhile; what follows for their requests follows.

    Locks: request rows by id, then job rows, without those that others have locked.
    """
    for part in columns.chunks(sorted(keys)):
        where = columns.keys([(row[0], row[1]) for row in part])
        requests = tx.query(f"SELECT DISTINCT request_id FROM workerd_jobs WHERE {where}")
        locked = columns.lock_requests(tx, [row[0] for row in requests if row[0] is not None])
        rows = tx.query(
            "SELECT id, attempt, handler, request_id, step, name, unique_key, run_at, expires_at"
            f" FROM workerd_jobs {tx.dialect.by_key}"
            f" WHERE ({where}) AND status = 'new'{tx.dialect.skip_locked}"
        )
        ended = [attempt for row in rows if (attempt := _end_one(tx, row, expires_us)) is not None]
        batch = ClosedBatch(now=tx.now, requests=locked, ended=ended, released=[], woken=set())
        duplicates.release_followers(tx, batch)
        workflows.advance(tx, batch)


def _end_one(tx: Tx, row: Row, expires_us: int | None) -> ClosedAttempt | None:
    job_id, attempt, handler, request_id, step, name, unique_key, due, expires_at = row
    run_at, own = columns.time_or_zero(due), columns.lenient_time(expires_at)
    if not is_over(attempt, run_at, own, expires_us, tx.now):
        return None
    end = own if own is not None else run_at + (expires_us or 0)
    error, now = sentence(run_at, end, tx.now), columns.at(tx.now)
    tx.execute(
        "UPDATE workerd_jobs SET status = 'cancelled', reason = 'expired', error = %s, finished_at = %s,"
        " ingested_at = %s WHERE id = %s AND attempt = %s",
        (error, now, now, job_id, attempt),
    )
    text = columns.lenient
    ended = ClaimedAttempt(
        id=job_id, attempt=attempt, claimed_at=0, handler=text(handler) or "", request_id=request_id,
        step=step, name=text(name), unique_key=text(unique_key),
    )  # fmt: skip
    return closed_attempt(expired(ended, error), b"", tx.now)
