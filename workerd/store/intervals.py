"""Coolers: one live row with the key `~cooler` is the chain of a handler or workflow."""

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

# The chains of recurring handlers and workflows: one live row with the key `~cooler` is the chain.
#
# The row of a recurring handler is its next or running job. The row of a recurring workflow stands for a
# whole run: it waits `scheduled`, is `inprogress` (of no node) while its request runs, and the transaction
# that ends the request closes it and inserts the next. Its id is the request's id, so that neither can lose
# the other. No pool claims it, because no handler may be called like a workflow; the unique index alone
# keeps two runs, or two chains, from being. Whatever is killed in between, the row says what is to be done.
#


class Link(NamedTuple):
    """The live row of a chain."""

    id: bytes
    attempt: int
    status: Status
    run_at: int


def live(tx: Tx, name: str) -> Link | None:
    """The chain of a recurring handler or workflow, None where it has none."""
    index, where = tx.dialect.hint("workerd_live"), tx.dialect.live_key_condition
    row = tx.one(
        f"SELECT id, attempt, status, run_at FROM workerd_jobs {index} WHERE {where}",
        (name, COOLER_KEY),
    )
    if row is None:
        return None
    return Link(row[0], row[1], Status(columns.text(row[2])), columns.time(row[3]))


def add(tx: Tx, name: str, job_id: bytes, *, run_at: int, running: bool = False) -> bool:
    """Insert the chain's row; False if another one lives already."""
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


def ensure(tx: Tx, name: str, pause: float) -> bool:
    """Insert the row where no live one is; whether this call did.

    A chain that was broken goes on `pause` seconds after its last run ended; a new one begins now.
    """
    if live(tx, name) is not None or not goes_on(tx, [name]):
        return False
    last = last_run(tx, name)
    due = tx.now if last is None else max(tx.now, last.end + int(pause * SECOND))
    return add(tx, name, new_id(), run_at=due)


def goes_on(tx: Tx, names: Iterable[str]) -> set[str]:
    """Those of `names` whose schedule exists and is not paused: only their chains get a next row."""
    wanted = sorted(set(names))
    if not wanted:
        return set()
    rows = tx.query(
        f"SELECT name FROM workerd_schedules WHERE kind = 'cooler' AND paused_at IS NULL"
        f" AND name IN ({marks(wanted)})",
        wanted,
    )
    return {columns.lenient(row[0]) or "" for row in rows}


_LOOK_BACK = 20


class Last(NamedTuple):
    """The last run of a chain that has ended."""

    id: bytes
    status: str
    end: int


def last_run(tx: Tx, name: str) -> Last | None:
    """The chain's last run that ended, as far as the newest rows of its name tell."""
    ends: list[Last] = []
    for status in (Status.COMPLETED, Status.FAILURE, Status.CANCELLED):
        rows = tx.query(
            "SELECT id, unique_key, COALESCE(finished_at, ingested_at)"
            f" FROM workerd_jobs {tx.dialect.hint('workerd_claim')}"
            " WHERE handler = %s AND status = %s AND priority = 0 ORDER BY run_at DESC LIMIT %s",
            (name, str(status), _LOOK_BACK),
        )
        ends += [
            Last(job_id, str(status), columns.time(end))
            for job_id, key, end in rows
            if key == COOLER_KEY.encode() and end is not None
        ]
    return max(ends, key=lambda last: last.end, default=None)


GONE = "its schedule was paused, or is configured no more"


def remove_waiting(tx: Tx, name: str) -> None:
    """Take the waiting row away, of a schedule that was paused or is configured no more."""
    where = tx.dialect.live_key_condition
    waits = f"{where} AND status IN ('scheduled','new')"
    tx.execute(f"DELETE FROM workerd_jobs WHERE {waits} AND attempt = 1", (name, COOLER_KEY))
    # What was lost or interrupted before has a history, and that needs its end.
    now = columns.at(tx.now)
    tx.execute(
        "UPDATE workerd_jobs SET status = 'cancelled', reason = 'cancelled', error = %s, finished_at = %s,"
        f" ingested_at = %s WHERE {waits}",
        (GONE, now, now, name, COOLER_KEY),
    )


def forget_pause(tx: Tx, name: str) -> None:
    """Take away the run that waits for the end of a pause which has changed; `ensure` inserts it anew."""
    where = tx.dialect.live_key_condition
    tx.execute(
        f"DELETE FROM workerd_jobs WHERE {where} AND status = 'scheduled' AND attempt = 1", (name, COOLER_KEY)
    )


def hurry(tx: Tx, name: str) -> bool:
    """Move the waiting row to now; False if none waits."""
    where = tx.dialect.live_key_condition
    return bool(
        tx.execute(
            "UPDATE workerd_jobs SET status = 'new', run_at = %s"
            f" WHERE {where} AND status IN ('scheduled','new')",
            (columns.at(tx.now), name, COOLER_KEY),
        )
    )


def begin(tx: Tx, link: Link) -> bool:
    """The waiting row of a workflow becomes the row of its run; False if it is not waiting any more."""
    now = columns.at(tx.now)
    return bool(
        tx.execute(
            "UPDATE workerd_jobs SET status = 'inprogress', claimed_at = %s, started_at = %s"
            " WHERE id = %s AND attempt = %s AND status IN ('scheduled','new')",
            (now, now, link.id, link.attempt),
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
    going = goes_on(tx, {o.handler for o in over})
    for o in over:
        if o.reason is Reason.SKIPPED:
            _forget_skipped(tx, o)
        if o.handler in going and add(tx, o.handler, new_id(), run_at=batch.now + max(0, o.next_run_us or 0)):
            batch.woken.add(o.handler)


_SKIPPED_KEPT_OF = 10


def _forget_skipped(tx: Tx, newest: Outcome) -> None:
    """Remove all but the newest skipped row of a recurring handler."""
    found = tx.query(
        f"SELECT id, attempt FROM (SELECT id, attempt, reason, unique_key FROM workerd_jobs"
        f" {tx.dialect.hint('workerd_claim')} WHERE handler = %s AND status = 'completed' AND priority = 0"
        f" ORDER BY run_at DESC LIMIT %s) AS last WHERE reason = 'skipped' AND unique_key = %s AND id <> %s",
        (newest.handler, _SKIPPED_KEPT_OF, COOLER_KEY, newest.id),
    )
    if found:
        tx.execute(f"DELETE FROM workerd_jobs WHERE {columns.keys([(row[0], row[1]) for row in found])}")


def close_runs(tx: Tx, ended: Iterable[tuple[bytes, wf.RequestStatus, wf.Graph]]) -> None:
    """Close the rows of runs that have ended, in the transaction that ends them, and insert the next ones."""
    for request_id, status, graph in ended:
        if graph.cooler is not None:
            close(tx, graph.name, request_id, status, graph.cooler)


def close(tx: Tx, name: str, request_id: bytes, status: wf.RequestStatus, pause: float) -> bool:
    """Close the row of one run and insert the next; False if it was closed already."""
    now = columns.at(tx.now)
    changed = tx.execute(
        "UPDATE workerd_jobs SET status = %s, reason = %s, success = %s, finished_at = %s, ingested_at = %s"
        " WHERE id = %s AND attempt = 1 AND handler = %s AND status = 'inprogress' AND unique_key = %s",
        (*_END[status], now, now, request_id, name, COOLER_KEY),
    )
    if changed and goes_on(tx, [name]):
        add(tx, name, new_id(), run_at=tx.now + int(pause * SECOND))
    return bool(changed)
