"""The attempts that follow those closed as `retry`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from workerd.job import AttemptRef, Status
from workerd.outcome import Outcome, Reason
from workerd.store import columns
from workerd.store.base import Tx
from workerd.store.outcomes import ClosedBatch
from workerd.text import ERROR_LIMIT, one_line

KEY_HELD = "; not tried again: another live job holds its unique key"
CANCEL_ASKED = "; not tried again: the job was cancelled"


def insert_next(tx: Tx, batch: ClosedBatch) -> None:
    """Insert the next attempts of the batch.

    There is none where the job was to be cancelled: the attempt ends as `cancelled`, however it went; and
    where another job got the unique key meanwhile: it ends as `failure`.
    """
    retried = [
        e.outcome for e in batch.ended if e.outcome.status is Status.RETRY and e.outcome.next is not None
    ]
    if not retried:
        return
    if tx.dialect.insert_next(tx, retried, batch.now) < len(retried):
        over = _over(tx, _without_next(tx, retried))
        batch.ended = [
            msgspec.structs.replace(e, outcome=over[e.outcome.ref]) if e.outcome.ref in over else e
            for e in batch.ended
        ]
    for outcome in (e.outcome for e in batch.ended):
        if outcome.next is not None and outcome.next.delay_us <= 0:
            batch.woken.add(outcome.handler)


def _without_next(tx: Tx, retried: Sequence[Outcome]) -> list[Outcome]:
    """Those without a next attempt; one that another transaction inserted is as good."""
    following: set[tuple[bytes, int]] = set()
    for part in columns.chunks(retried):
        keys = columns.keys([(o.id, o.attempt + 1) for o in part])
        found = tx.query(f"SELECT id, attempt FROM workerd_jobs WHERE {keys}")
        following.update((job_id, attempt) for job_id, attempt in found)
    return [o for o in retried if (o.id, o.attempt + 1) not in following]


def _over(tx: Tx, last: Sequence[Outcome]) -> dict[AttemptRef, Outcome]:
    """How these attempts end, which nothing follows."""
    asked: set[tuple[bytes, int]] = set()
    for part in columns.chunks(last):
        keys = columns.keys([o.ref for o in part])
        found = tx.query(
            f"SELECT id, attempt FROM workerd_jobs WHERE ({keys}) AND cancel_requested_at IS NOT NULL"
        )
        asked.update((job_id, attempt) for job_id, attempt in found)
    return {o.ref: _cancelled(tx, o) if o.ref in asked else _failed(tx, o) for o in last}


def _cancelled(tx: Tx, outcome: Outcome) -> Outcome:
    error = _error(outcome, CANCEL_ASKED)
    tx.execute(
        "UPDATE workerd_jobs SET status = 'cancelled', reason = 'cancelled', success = NULL, error = %s,"
        " error_class = NULL, fingerprint = NULL WHERE id = %s AND attempt = %s",
        (error, *outcome.ref),
    )
    return msgspec.structs.replace(
        outcome,
        status=Status.CANCELLED,
        reason=Reason.CANCELLED,
        success=None,
        error=error,
        error_class=None,
        fingerprint=None,
        next=None,
    )


def _failed(tx: Tx, outcome: Outcome) -> Outcome:
    error = _error(outcome, KEY_HELD)
    tx.execute(
        "UPDATE workerd_jobs SET status = 'failure', success = %s, error = %s WHERE id = %s AND attempt = %s",
        (False, error, *outcome.ref),
    )
    return msgspec.structs.replace(outcome, status=Status.FAILURE, success=False, error=error, next=None)


def _error(outcome: Outcome, why_over: str) -> str:
    return one_line(outcome.error or outcome.reason or "", ERROR_LIMIT - len(why_over)) + why_over
