"""When the row of a wait is due, and the signals that were given."""

from __future__ import annotations

from workerd.clock import LATEST, SECOND
from workerd.config.workflow_config import WorkflowJob
from workerd.store import columns
from workerd.store.base import Tx


def due_at(tx: Tx, request_id: bytes, job: WorkflowJob) -> int:
    """The store time at which a wait that begins now ends by itself.

    At once if its signal was given before.
    """
    if job.signal:
        if kept(tx, request_id, job.signal) is not None:
            return tx.now
        return LATEST if job.timeout is None else tx.now + round(job.timeout * SECOND)
    if job.until is not None:
        return job.until
    return tx.now + round((job.wait or 0) * SECOND)


def begin_again(tx: Tx, request_id: bytes, job_id: bytes, job: WorkflowJob) -> None:
    """Let a wait whose row was made `new` again last as long as at first."""
    due = due_at(tx, request_id, job)
    tx.execute(
        f"UPDATE workerd_jobs {tx.dialect.by_key} SET status = %s, run_at = %s"
        " WHERE id = %s AND status = 'new'",
        ("new" if due <= tx.now else "scheduled", columns.at(due), job_id),
    )


def keep(tx: Tx, request_id: bytes, name: str, payload: bytes, source: str) -> bool:
    """Keep a signal; False if it was given before: the first one counts."""
    return bool(
        tx.execute(
            "INSERT INTO workerd_signals (request_id, name, payload, source, created_at)"
            " VALUES (%s, %s, %s, %s, %s)" + tx.dialect.keep_existing("name"),
            (request_id, name, payload.decode(), source, columns.at(tx.now)),
        )
    )


def kept(tx: Tx, request_id: bytes, name: str) -> bytes | None:
    """The payload of a signal that was given, JSON."""
    row = tx.one(
        "SELECT payload FROM workerd_signals WHERE request_id = %s AND name = %s", (request_id, name)
    )
    return None if row is None else row[0]
