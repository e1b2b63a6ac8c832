"""The column `state`: written for the attempt that runs, carried to the next one, cleared by success."""

from __future__ import annotations

from typing import Any

from tests.support.storing import NODE, claims, close, enqueue, job, outcome, sql, value
from workerd.job import Claim, Status
from workerd.messages import StateSaved
from workerd.store import job_control, saved_states
from workerd.store.base import Store


def saved(claim: Claim, state: bytes = b'{"saved":1}', **given: Any) -> StateSaved:
    usual = {"claimed_at": claim.claimed_at, "started_at": claim.claimed_at, "pid": 7, "number": 1}
    return StateSaved(claim.id, claim.attempt, state=state, **(usual | given))


def write(store: Store, *states: StateSaved) -> saved_states.Written:
    return store.run(lambda tx: saved_states.write(tx, states, NODE.id))


def test_only_the_attempt_that_runs_here_is_written(store: Store) -> None:
    """Another claim's time, an ended attempt and one without a row are no longer this node's."""
    for _ in range(3):
        enqueue(store, "h")
    running, other, ended = claims(store, "h")
    close(store, [outcome(ended)])
    good, wrong, late = saved(running), saved(other, claimed_at=other.claimed_at - 1), saved(ended)
    assert write(store, good, wrong, late) == ([good], [wrong, late])
    stored = job(store, running.id).row
    assert (stored.state, stored.pid) == (b'{"saved":1}', 7)
    assert job(store, other.id).row.state is None
    assert write(store, good) == ([good], []), "the same again counts as stored"


def test_the_next_attempt_goes_on_from_it(store: Store) -> None:
    """From what its outcome carries, else from what the row has; a success clears it."""
    made = enqueue(store, "h")
    (first,) = claims(store, "h")
    assert first.state is None
    write(store, saved(first))
    close(store, [outcome(first, Status.RETRY)])
    (second,) = claims(store, "h")
    assert (second.attempt, second.state) == (2, b'{"saved":1}')
    newer = b'{"saved":"' + b"x" * 60_000 + b'"}'
    close(store, [outcome(second, Status.RETRY, state=newer)])
    (third,) = claims(store, "h")
    assert third.state == newer
    close(store, [outcome(third, state=b"")])
    assert value(store, "SELECT state FROM workerd_jobs WHERE id = %s AND attempt = 3", made) is None


def test_a_retry_by_hand_keeps_it_unless_fresh(store: Store) -> None:
    """Of an ended job, and of a scheduled one that is run now."""
    for fresh, kept in ((False, b'{"saved":1}'), (True, None)):
        made = enqueue(store, "h")
        (first,) = claims(store, "h")
        close(store, [outcome(first, Status.FAILURE, state=b'{"saved":1}')])
        store.run(lambda tx, made=made, fresh=fresh: job_control.retry(tx, made, fresh=fresh))
        (second,) = claims(store, "h")
        assert (second.id, second.attempt, second.state) == (made, 2, kept)
        close(store, [outcome(second)])
        later = enqueue(store, "h", delay=3_600_000_000)
        sql(store, "UPDATE workerd_jobs SET state = %s WHERE id = %s", b'{"saved":1}', later)
        store.run(lambda tx, later=later, fresh=fresh: job_control.retry(tx, later, fresh=fresh))
        (third,) = claims(store, "h")
        assert (third.id, third.state) == (later, kept)
        close(store, [outcome(third)])
