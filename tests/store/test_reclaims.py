"""Rows that a store has back as if nobody had claimed them are claimed again as they were."""

from __future__ import annotations

from tests.support.storing import NODE, claims, close, enqueue, job, outcome, sql, status
from workerd.job import AttemptRef, Status
from workerd.store import reclaims
from workerd.store.base import Store


def test_a_lost_claim_is_taken_back_with_its_moment(store: Store) -> None:
    """So that the outcome, which names it, closes the attempt."""
    made = enqueue(store, "h")
    (claim,) = claims(store, "h")
    for waiting in ("new", "scheduled"):
        sql(store, f"UPDATE workerd_jobs SET status = '{waiting}', node_id = NULL, claimed_at = NULL")
        found = store.run(lambda tx: reclaims.take_back(tx, NODE, {claim.ref: claim.claimed_at}))
        assert found == ([claim.ref], [])
        row = job(store, made).row
        assert (row.status, row.node_id, row.claimed_at) == ("inprogress", NODE.id, claim.claimed_at)
    assert close(store, [outcome(claim)]) == 1
    assert status(store, made) == Status.COMPLETED


def test_only_rows_that_wait_are_taken(store: Store) -> None:
    """One that another node claimed, or that has ended, is left alone; one without a row is named."""
    made = enqueue(store, "h")
    (claim,) = claims(store, "h")
    gone = AttemptRef(bytes(16), 1)
    held = {claim.ref: 5, gone: 5}
    assert store.run(lambda tx: reclaims.take_back(tx, NODE, held)) == ([], [gone])
    assert job(store, made).row.claimed_at == claim.claimed_at
    assert store.run(lambda tx: reclaims.take_ended(tx, NODE, [claim.ref, gone])) == []
    close(store, [outcome(claim)])
    assert store.run(lambda tx: reclaims.take_ended(tx, NODE, [claim.ref])) == []
    assert status(store, made) == Status.COMPLETED
