"""Cancel and retry many jobs: a slice of them, in one transaction.

A job is changed if its newest attempt is still the one that was selected: so each is changed once, by the
first caller, and an attempt created meanwhile is left alone. Jobs that can no longer change are left out.

Locks: request rows by id, then job rows by (id, attempt).
"""

from __future__ import annotations

from collections.abc import Sequence

from workerd.errors import Conflict, NotFound
from workerd.job import COOLER_KEY, ENDED, AttemptRef, Status
from workerd.job_filter import JobFilter
from workerd.store import columns, job_control, job_matches, requests
from workerd.store.base import Tx
from workerd.store.columns import RequestRow
from workerd.store.job_control import CurrentRow
from workerd.store.job_matches import ShownMeta
from workerd.workflow import REQUEST_ENDED

_WAITING = (Status.NEW, Status.SCHEDULED)


def locked(
    tx: Tx, wanted: JobFilter, refs: Sequence[AttemptRef], shown: ShownMeta | None
) -> tuple[list[CurrentRow], dict[bytes, RequestRow]]:
    """Those of the rows that still fit, locked after their requests, by (id, attempt)."""
    keys = columns.keys(refs)
    found = tx.query(
        f"SELECT DISTINCT request_id FROM workerd_jobs WHERE ({keys}) AND request_id IS NOT NULL"
    )
    requests_ = columns.lock_requests(tx, [row[0] for row in found])
    rows = tx.query(
        f"SELECT {job_control.CURRENT_COLUMNS} FROM workerd_jobs WHERE ({keys})"
        f" ORDER BY id, attempt{tx.dialect.row_lock}"
    )
    current = [job_control.current_row(row) for row in rows]
    if wanted.status is not None:
        current = [job for job in current if job.status == wanted.status]
    if wanted.group is not None or wanted.meta:  # what an edit changes
        still = job_matches.fitting(tx, [AttemptRef(job.id, job.attempt) for job in current], wanted, shown)
        current = [job for job in current if (job.id, job.attempt) in still]
    return current, requests_


def has_ended_request(tx: Tx, refs: Sequence[AttemptRef]) -> bool:
    """Whether one of these jobs belongs to a request that has ended."""
    ended = [str(status) for status in sorted(REQUEST_ENDED)]
    found = tx.one(
        "SELECT 1 FROM workerd_requests AS r JOIN"
        f" (SELECT DISTINCT request_id FROM workerd_jobs WHERE {columns.keys(refs)}) AS j"
        f" ON r.id = j.request_id WHERE r.status IN ({columns.marks(ended)}) LIMIT 1",
        ended,
    )
    return found is not None


def cancel(tx: Tx, jobs: Sequence[CurrentRow], locked_requests: dict[bytes, RequestRow]) -> list[bytes]:
    """End those that wait, ask those that run to stop; the ids of them, without those asked before."""
    waiting = [job for job in jobs if job.status in _WAITING]
    running = [job for job in jobs if job.status is Status.INPROGRESS and not job.cancel_requested]
    asked = [job for job in running if not job.stands_for_request]
    if waiting:
        job_control.end_waiting(tx, waiting, locked_requests)
    if asked:
        job_control.ask_to_stop(tx, asked)
    recurring = [job for job in running if job.stands_for_request and _is_cancelled(tx, job)]
    return [job.id for job in (*waiting, *asked, *recurring)]


def _is_cancelled(tx: Tx, job: CurrentRow) -> bool:
    """Cancel the run of a recurring workflow; false if it has ended."""
    try:
        requests.cancel(tx, job.id)
    except (Conflict, NotFound):
        return False
    return True


def retry(tx: Tx, jobs: Sequence[CurrentRow], *, fresh: bool = False) -> list[bytes]:
    """Run those that have ended again, and those that are scheduled now; the ids of them."""
    scheduled = [job for job in jobs if job.status is Status.SCHEDULED and job_control.waits_for(job) is None]
    ended = [job for job in jobs if job.status in ENDED]
    alone = [job for job in ended if _is_alone(job)]
    done = list(scheduled)
    if scheduled:
        job_control.make_due(tx, scheduled, fresh=fresh)
    if alone:
        done += job_control.all_again(tx, alone, fresh=fresh)
    done += [job for job in ended if not _is_alone(job) and _is_retried(tx, job, fresh)]
    return [job.id for job in done]


def _is_alone(job: CurrentRow) -> bool:
    """Whether nothing but the job itself follows from its retry."""
    return job.request_id is None and job.unique_key != COOLER_KEY


def _is_retried(tx: Tx, job: CurrentRow, fresh: bool) -> bool:
    """Retry one job with what follows for its request; whether it is, perhaps with another one of that."""
    try:
        job_control.retry(tx, job.id, fresh=fresh)
    except (Conflict, NotFound):
        row = tx.one("SELECT status FROM workerd_jobs WHERE id = %s AND attempt = %s", (job.id, job.attempt))
        return row is not None and columns.text(row[0]) == Status.RETRY
    return True
