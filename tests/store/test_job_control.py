"""Manual cancels and retries of jobs."""

from __future__ import annotations

import pytest

from tests.support import storing as s
from workerd import errors
from workerd.clock import SECOND
from workerd.job import Status
from workerd.outcome import NextAttempt, Reason
from workerd.store import job_control
from workerd.store.base import Store
from workerd.store.polls import poll


def test_cancel_ends_what_waits_and_asks_what_runs(store: Store) -> None:
    """Waiting jobs end at once with the person's word in `error`; a running one is marked for its node."""
    waiting, later = s.enqueue(store, "h"), s.enqueue(store, "h", delay=3600 * SECOND)
    for job_id in (waiting, later):
        assert store.run(lambda tx, job_id=job_id: job_control.cancel(tx, job_id)) == "ended"
        row = s.job(store, job_id).row
        assert (row.status, row.reason, row.success) == ("cancelled", "cancelled", None)
        assert row.finished_at is not None
    running = s.enqueue(store, "h")
    (claim,) = s.claims(store, "h")
    for _ in range(2):
        assert store.run(lambda tx: job_control.cancel(tx, running)) == "asked"
    assert s.job(store, running).row.cancel_requested_at is not None
    assert store.alone(lambda tx: poll(tx, s.NODE.id, []), write=False).cancels == [claim.ref]
    s.close(store, [s.outcome(claim)])
    with pytest.raises(errors.NotFound):
        store.run(lambda tx: job_control.cancel(tx, b"x" * 16))
    with pytest.raises(Exception, match="already ended: it is completed"):
        store.run(lambda tx: job_control.cancel(tx, running))


@pytest.mark.parametrize("ending", [Status.FAILURE, Status.CANCELLED, Status.COMPLETED])
def test_retry_keeps_the_history(store: Store, ending: Status) -> None:
    """The ended row becomes `retry` with its reason, the next starts with counters at 0."""
    job_id = s.enqueue(store, "h", vars=b'{"a":1}', meta=b"1", unique_key="k", max_attempts=9, priority=4)
    s.finish(store, "h", Status.RETRY, next=NextAttempt(0, 3, 2, 1))
    s.finish(store, "h", ending, error="no")
    reason = s.job(store, job_id).row.reason
    assert store.run(lambda tx: job_control.retry(tx, job_id)) == 3
    found = s.job(store, job_id)
    assert [(a.status, a.reason) for a in found.attempts] == [
        ("retry", "retry"),
        ("retry", reason),
        ("new", None),
    ]
    row = found.row
    assert (row.failures, row.crashes, row.losses, row.error) == (0, 0, 0, None)
    assert (row.vars, row.meta, row.unique_key, row.max_attempts, row.priority) == (
        b'{"a":1}',
        b"1",
        "k",
        9,
        4,
    )
    assert row.created_at == found.attempts[0].created_at
    with pytest.raises(Exception, match="live"):
        store.run(lambda tx: job_control.retry(tx, job_id))


def test_retry_of_a_scheduled_job_makes_it_due(store: Store) -> None:
    """No attempt is added: the one that waits runs now."""
    job_id = s.enqueue(store, "h", delay=3600 * SECOND)
    assert store.run(lambda tx: job_control.retry(tx, job_id)) == 1
    assert (s.status(store, job_id), len(s.claims(store, "h"))) == ("new", 1)


def test_retry_is_refused_while_the_key_is_held(store: Store) -> None:
    """The job that holds the key is left alone, and the ended one stays as it was."""
    first = s.enqueue(store, "h", unique_key="k")
    s.finish(store, "h", Status.FAILURE, reason=Reason.ERROR)
    second = s.enqueue(store, "h", unique_key="k")
    with pytest.raises(Exception, match="unique key"):
        store.run(lambda tx: job_control.retry(tx, first))
    assert (s.status(store, first), s.status(store, second)) == ("failure", "new")
