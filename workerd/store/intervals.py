"""Intervals (`cooler`): the single live row of a recurring handler or workflow, keyed `~cooler`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from workerd import workflow as wf
from workerd.clock import SECOND
from workerd.job import COOLER_KEY, ENDED, Status, new_id
from workerd.outcome import Outcome, Reason
from workerd.store import columns
from workerd.store.base import Tx
from workerd.store.columns import marks
from workerd.store.outcomes import ClosedBatch

# The row of a recurring handler is its next or running job. The row of a recurring workflow stands for a
# whole run: it waits as `scheduled`, is `inprogress` (without a node) while its request runs, and the
# transaction that ends the request closes it and inserts the next one. It has the id of the request, so that
# each leads to the other. No pool claims it, because no handler has the name of a workflow. The unique index
# alone prevents a second run; after a crash at any point the row tells how to continue.


SET_BACK_US = SECOND
"""By so much a row's `created_at` must lie ahead to show that the store's clock was set back."""


class LiveRun(NamedTuple):
    """The live row: the run that waits or is in progress."""

    id: bytes
    attempt: int
    status: Status
    run_at: int
    created_at: int


def live_run(tx: Tx, name: str) -> LiveRun | None:
    """The live row of a recurring handler or workflow, None without one."""
    index, where = tx.dialect.hint("workerd_live"), tx.dialect.live_key_condition
    row = tx.one(
        f"SELECT id, attempt, status, run_at, created_at FROM workerd_jobs {index} WHERE {where}",
        (name, COOLER_KEY),
    )
    if row is None:
        return None
    status = columns.job_status(row[2])
    return LiveRun(row[0], row[1], status, columns.time_or_zero(row[3]), columns.time_or_zero(row[4]))


def insert_run(tx: Tx, name: str, job_id: bytes, *, run_at: int, running: bool = False) -> bool:
    """Insert the row of a run; False if there is a live one."""
    waiting = Status.NEW if run_at <= tx.now else Status.SCHEDULED
    status = Status.INPROGRESS if running else waiting
    started = columns.at(tx.now) if running else None
    return bool(
        tx.execute(
            "INSERT INTO workerd_jobs (id, attempt, handler, status, run_at, unique_key, max_attempts,"
            " created_at, claimed_at, started_at) VALUES (%s, 1, %s, %s, %s, %s, NULL, %s, %s, %s)"
            + tx.dialect.keep_existing("id"),
            (job_id, name, str(status), columns.at(run_at), COOLER_KEY, columns.at(tx.now), started, started),
        )
    )


def ensure_next(tx: Tx, name: str, pause: float) -> bool:
    """Insert the next run if there is no live row; returns whether this call did.

    It is due `pause` seconds after the end of the last run, at once without one. If the store's clock was
    set back since the waiting run was scheduled, that becomes due earlier by as much.
    """
    run = live_run(tx, name)
    if run is not None:
        follow_clock(tx, run)
        return False
    if not active(tx, [name]):
        return False
    last = last_run(tx, name)
    pause_us = int(pause * SECOND)
    due = tx.now if last is None else max(tx.now, min(last.end, tx.now) + pause_us)
    return insert_run(tx, name, new_id(), run_at=due)


def follow_clock(tx: Tx, run: LiveRun) -> bool:
    """Keep the pause before a waiting run, from now on, if its row was written in what is now the future.

    Only a clock that was set back explains such a row. Returns whether it was one.
    """
    if run.status is not Status.SCHEDULED or run.created_at <= tx.now + SET_BACK_US:
        return False
    return bool(
        tx.execute(
            "UPDATE workerd_jobs SET run_at = %s, created_at = %s"
            " WHERE id = %s AND attempt = %s AND status = 'scheduled' AND created_at = %s",
            (
                columns.at(tx.now + max(0, run.run_at - run.created_at)), columns.at(tx.now),
                run.id, run.attempt, columns.at(run.created_at),
            ),
        )
    )  # fmt: skip


def active(tx: Tx, names: Iterable[str]) -> set[str]:
    """Those of `names` whose schedule exists and is not paused: only these get a next run."""
    wanted = sorted(set(names))
    if not wanted:
        return set()
    rows = tx.query(
        f"SELECT name FROM workerd_schedules WHERE kind = 'cooler' AND paused_at IS NULL"
        f" AND name IN ({marks(wanted)})",
        wanted,
    )
    return {columns.lenient(row[0]) or "" for row in rows}


_ROWS_SEARCHED = 20


class LastRun(NamedTuple):
    """The last run that has ended."""

    id: bytes
    status: str
    end: int


def last_run(tx: Tx, name: str) -> LastRun | None:
    """The last run that ended, searched in the newest rows of its name."""
    ends: list[LastRun] = []
    for status in (Status.COMPLETED, Status.FAILURE, Status.CANCELLED):
        rows = tx.query(
            "SELECT id, unique_key, COALESCE(finished_at, ingested_at)"
            f" FROM workerd_jobs {tx.dialect.hint('workerd_holder')}"
            " WHERE status = %s AND holder = %s AND priority = 0 ORDER BY run_at DESC LIMIT %s",
            (str(status), name, _ROWS_SEARCHED),
        )
        ends += [
            LastRun(job_id, str(status), columns.time_or_zero(end))
            for job_id, key, end in rows
            if key == COOLER_KEY.encode() and end is not None
        ]
    return max(ends, key=lambda last: last.end, default=None)


SCHEDULE_GONE = "its schedule was paused, or is configured no more"


def remove_waiting(tx: Tx, name: str) -> None:
    """Remove the waiting run of a schedule that was paused or is no longer configured."""
    where = tx.dialect.live_key_condition
    waits = f"{where} AND status IN ('scheduled','new')"
    tx.execute(f"DELETE FROM workerd_jobs WHERE {waits} AND attempt = 1", (name, COOLER_KEY))
    # A run with earlier attempts (lost, interrupted) is history and needs an end instead.
    now = columns.at(tx.now)
    tx.execute(
        "UPDATE workerd_jobs SET status = 'cancelled', reason = 'cancelled', error = %s, finished_at = %s,"
        f" ingested_at = %s WHERE {waits}",
        (SCHEDULE_GONE, now, now, name, COOLER_KEY),
    )


def remove_scheduled(tx: Tx, name: str) -> None:
    """Remove the run scheduled by an interval that has changed; `ensure_next` inserts it again."""
    where = tx.dialect.live_key_condition
    tx.execute(
        f"DELETE FROM workerd_jobs WHERE {where} AND status = 'scheduled' AND attempt = 1", (name, COOLER_KEY)
    )


def make_due(tx: Tx, name: str) -> bool:
    """Make the waiting run due now; False if none waits."""
    where = tx.dialect.live_key_condition
    return bool(
        tx.execute(
            "UPDATE workerd_jobs SET status = 'new', run_at = %s"
            f" WHERE {where} AND status IN ('scheduled','new')",
            (columns.at(tx.now), name, COOLER_KEY),
        )
    )


def start_run(tx: Tx, run: LiveRun) -> bool:
    """Mark the waiting run of a workflow as in progress; False if it no longer waits."""
    now = columns.at(tx.now)
    return bool(
        tx.execute(
            "UPDATE workerd_jobs SET status = 'inprogress', claimed_at = %s, started_at = %s"
            " WHERE id = %s AND attempt = %s AND status IN ('scheduled','new')",
            (now, now, run.id, run.attempt),
        )
    )


_END = {
    wf.RequestStatus.COMPLETED: ("completed", "ok", 1),
    wf.RequestStatus.FAILED: ("failure", "failure", 0),
    wf.RequestStatus.CANCELLED: ("cancelled", "cancelled", None),
}


def insert_next_runs(tx: Tx, batch: ClosedBatch) -> None:
    """Insert the next run of each recurring handler whose run has ended."""
    over = [
        e.outcome
        for e in batch.ended
        if e.outcome.next_run_us is not None
        and e.outcome.unique_key == COOLER_KEY
        and e.outcome.status in ENDED
        and e.outcome.request_id is None
    ]
    if not over:
        return
    recurring = active(tx, {o.handler for o in over})
    for o in over:
        if o.reason is Reason.SKIPPED:
            _forget_skipped(tx, o)
        if o.handler in recurring and insert_run(
            tx, o.handler, new_id(), run_at=batch.now + max(0, o.next_run_us or 0)
        ):
            batch.woken.add(o.handler)


_SKIPPED_SEARCHED = 10


def _forget_skipped(tx: Tx, newest: Outcome) -> None:
    """Remove all but the newest skipped row of a recurring handler."""
    found = tx.query(
        f"SELECT id, attempt FROM (SELECT id, attempt, reason, unique_key FROM workerd_jobs"
        f" {tx.dialect.hint('workerd_holder')} WHERE status = 'completed' AND holder = %s AND priority = 0"
        f" ORDER BY run_at DESC LIMIT %s) AS last WHERE reason = 'skipped' AND unique_key = %s AND id <> %s",
        (newest.handler, _SKIPPED_SEARCHED, COOLER_KEY, newest.id),
    )
    if found:
        tx.execute(f"DELETE FROM workerd_jobs WHERE {columns.keys([(row[0], row[1]) for row in found])}")


def close_runs(tx: Tx, ended: Iterable[tuple[bytes, wf.RequestStatus, wf.Graph]]) -> None:
    """Close the rows of recurring workflows' runs that have ended, and insert the next ones."""
    for request_id, status, graph in ended:
        if graph.cooler is not None:
            close_run(tx, graph.name, request_id, status, graph.cooler)


def close_run(tx: Tx, name: str, request_id: bytes, status: wf.RequestStatus, pause: float) -> bool:
    """Close the row of one run and insert the next; False if it was closed before."""
    now = columns.at(tx.now)
    changed = tx.execute(
        "UPDATE workerd_jobs SET status = %s, reason = %s, success = %s, finished_at = %s, ingested_at = %s"
        " WHERE id = %s AND attempt = 1 AND handler = %s AND status = 'inprogress' AND unique_key = %s",
        (*_END[status], now, now, request_id, name, COOLER_KEY),
    )
    if changed and active(tx, [name]):
        insert_run(tx, name, new_id(), run_at=tx.now + int(pause * SECOND))
    return bool(changed)
