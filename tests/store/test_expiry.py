"""Jobs that have not begun in time never do: at the claim, and in the sweep whatever their handler."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.storing import NODE, claims, close, enqueue, finish, job, outcome, sql, submit, workflow
from workerd import clock
from workerd.clock import SECOND
from workerd.duplicates import OnConflict
from workerd.job import COOLER_KEY, AttemptRef, Status, new_id
from workerd.job_spec import NewJob
from workerd.outcome import NextAttempt, Reason
from workerd.store import claims as store_claims
from workerd.store import duplicates, expiry, group_queues, handlers, job_control, requests
from workerd.store.base import Store

MINUTE = 60 * SECOND


def now(store: Store) -> int:
    return store.read(lambda tx: tx.now)


def age(store: Store, seconds: int) -> None:
    """Let all rows be due so much earlier, and expire so much earlier."""
    rows = store.read(lambda tx: tx.query("SELECT id, attempt, run_at, expires_at FROM workerd_jobs"))
    for job_id, attempt, *times in rows:
        moved = [t and clock.to_text(clock.from_text(t) - seconds * SECOND) for t in times]
        change = "UPDATE workerd_jobs SET run_at = %s, expires_at = %s WHERE id = %s AND attempt = %s"
        sql(store, change, *moved, job_id, attempt)


def sweep(store: Store, handler: str = "", expires_us: int = 0) -> int:
    if not handler:
        return store.run(lambda tx: expiry.sweep(tx, 100))
    ended, place = 0, None
    while True:
        swept = store.run(lambda tx, place=place: expiry.sweep_handler(tx, handler, expires_us, 100, place))
        ended, place = ended + swept.ended, swept.next
        if place is None:
            return ended


def state(store: Store, job_id: bytes) -> tuple[str, str | None]:
    row = job(store, job_id).row
    return row.status, row.reason


def claim(store: Store, handler: str = "h", expires_us: int | None = None) -> store_claims.ClaimBatch:
    return store.run(lambda tx: store_claims.claim(tx, handler, 100, NODE, expires_us=expires_us))


def test_what_would_be_due_after_it_has_expired_ends_in_time(store: Store) -> None:
    """A plain INSERT may say so; it is found at the moment when it expires."""
    late = enqueue(store, "h", delay=3600 * SECOND)
    expires_at = now(store) - SECOND
    sql(store, "UPDATE workerd_jobs SET expires_at = %s WHERE id = %s", clock.to_text(expires_at), late)
    assert store.run(lambda tx: store_claims.promote_due(tx, 100)).count == 1
    assert sweep(store) == 1
    assert state(store, late) == ("cancelled", "expired")


def test_a_scheduled_row_needs_no_time(store: Store) -> None:
    """It is due at once, as one that is inserted without anything."""
    made = new_id()
    sql(store, "INSERT INTO workerd_jobs (id, handler, status) VALUES (%s, 'h', 'scheduled')", made)
    assert store.run(lambda tx: store_claims.promote_due(tx, 100)).count == 1
    assert state(store, made) == ("new", None)


def test_the_sweep_ends_what_is_over(store: Store) -> None:
    """Also of a paused handler; what is not over stays, and so does what never expires."""
    over, later, never = (enqueue(store, "h", expires_in=n) for n in (MINUTE, 10 * MINUTE, None))
    store.run(lambda tx: handlers.pause(tx, "h", "ann", None))
    age(store, 61)
    assert sweep(store) == 1
    assert sweep(store) == 0
    assert [state(store, one) for one in (over, later, never)] == [
        ("cancelled", "expired"), ("new", None), ("new", None),
    ]  # fmt: skip
    row = job(store, over).row
    assert row.error is not None
    assert row.error.startswith("It had to start within 1 min 00 s and was still waiting after 1 min 0")
    assert row.finished_at == row.ingested_at is not None
    assert row.expires_at is not None
    assert row.fingerprint is None


def test_the_claim_ends_what_is_over(store: Store) -> None:
    """It is handed out to nobody; it ends by its outcome, as the claimer sends it."""
    over, fine = enqueue(store, "h", expires_in=MINUTE), enqueue(store, "h", expires_in=10 * MINUTE)
    age(store, 61)
    batch = claim(store)
    assert [one.id for one in batch.claims] == [fine]
    (told,) = batch.broken
    assert (told.id, told.status, told.reason) == (over, Status.CANCELLED, Reason.EXPIRED)
    assert close(store, [told]) == 1
    assert state(store, over) == ("cancelled", "expired")


def test_a_handlers_own_time_holds_for_plain_inserts(store: Store) -> None:
    """At the claim and in the sweep, over all priorities; a job's own time takes precedence."""
    ids = [enqueue(store, "h", priority=n) for n in (-(2**31), 0, 5)]
    own = enqueue(store, "h", expires_in=10 * MINUTE)
    cooler = enqueue(store, "h", unique_key=COOLER_KEY)
    age(store, 61)
    young = enqueue(store, "h")
    assert sweep(store, "h", 2 * MINUTE) == 0
    assert sweep(store, "h", MINUTE) == 3
    assert {state(store, one) for one in ids} == {("cancelled", "expired")}
    late = enqueue(store, "h", priority=7)
    sql(store, "UPDATE workerd_jobs SET run_at = '2001-01-01 00:00:00.000000' WHERE id = %s", late)
    batch = claim(store, expires_us=MINUTE)
    assert {one.id for one in batch.claims} == {own, cooler, young}
    assert [one.id for one in batch.broken] == [late]


def test_jobs_in_all_queues_of_groups_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many groups and priorities there are, and more of one group than a slice ends."""
    monkeypatch.setattr(expiry, "MAX_QUEUES", 3)
    monkeypatch.setattr(expiry, "MAX_PRIORITIES", 2)
    many = [enqueue(store, "h", group_key="many") for _ in range(150)]
    over = [enqueue(store, "h", group_key=f"g{n}", priority=n % 5) for n in range(20)]
    over += [enqueue(store, "h", priority=n) for n in range(5)]
    other = enqueue(store, "other", group_key="g1")
    age(store, 61)
    young = enqueue(store, "h", group_key="g1")
    rows = store.read(lambda tx: tx.query("SELECT id, attempt, group_key FROM workerd_jobs"))
    groups = {AttemptRef(one, attempt): group.decode() for one, attempt, group in rows if group is not None}
    store.run(lambda tx: group_queues.park(tx, "h", {ref: g for ref, g in groups.items() if ref.id != other}))
    assert sweep(store, "h", MINUTE) == len(many) + len(over)
    assert {state(store, one) for one in (*many, *over)} == {("cancelled", "expired")}
    assert [state(store, one)[0] for one in (young, other)] == ["new", "new"]


def test_what_began_does_not_expire(store: Store) -> None:
    """Neither its retry, nor what a person tries again."""
    first = enqueue(store, "h", expires_in=MINUTE)
    (taken,) = claims(store, "h")
    retried = outcome(taken, Status.RETRY, Reason.ERROR, next=NextAttempt(0, 1, 0, 0))
    close(store, [retried])
    gone = enqueue(store, "h", expires_in=MINUTE)
    age(store, 61)
    assert sweep(store) == 1
    assert sweep(store, "h", MINUTE) == 0
    store.run(lambda tx: job_control.retry(tx, gone))
    age(store, 120)
    assert sweep(store) == 0
    assert {one.id for one in claim(store, expires_us=MINUTE).claims} == {first, gone}


def test_a_delayed_job_expires_after_it_was_due(store: Store) -> None:
    """The duration counts from run_at."""
    job_id = enqueue(store, "h", delay=10 * MINUTE, expires_in=MINUTE)
    row = job(store, job_id).row
    assert row.run_at is not None
    assert row.expires_at == row.run_at + MINUTE
    age(store, 599)
    assert sweep(store) == 0
    age(store, 2)
    promoted = store.run(lambda tx: store_claims.promote_due(tx, 10))
    assert (promoted.count, promoted.expired) == (1, False)
    assert sweep(store) == 0
    age(store, 61)
    promoted = store.run(lambda tx: store_claims.promote_due(tx, 10))
    assert (promoted.count, promoted.expired) == (0, True)
    assert sweep(store) == 1


def test_the_next_expiry_is_known_and_one_that_is_over_is_not_waited_for(store: Store) -> None:
    """The poll knows when to look again, without a busy loop over rows that the sweep has yet to end."""
    enqueue(store, "h", expires_in=MINUTE)
    due = store.run(lambda tx: store_claims.promote_due(tx, 10)).next_due
    assert due is not None
    assert now(store) + 50 * SECOND < due <= now(store) + MINUTE
    age(store, 61)
    assert store.run(lambda tx: store_claims.promote_due(tx, 10)).next_due is None


@pytest.mark.parametrize("expires_us", [None, MINUTE])
def test_a_job_behind_another_of_its_key_expires(store: Store, expires_us: int | None) -> None:
    """By its own time or its handler's, while the other runs on; then another may wait behind that."""
    given: dict[str, Any] = {} if expires_us else {"expires_in": MINUTE}

    def put() -> bytes:
        new = NewJob(handler="h", unique_key="k", on_conflict=OnConflict.FOLLOW, **given)
        return store.run(lambda tx: duplicates.insert(tx, [new]))[0].id

    runs = put()
    claim(store)
    waits = put()
    age(store, 59)
    assert ended(store, expires_us) == 0
    age(store, 2)
    assert ended(store, expires_us) == 1
    assert state(store, waits) == ("cancelled", "expired")
    assert state(store, runs) == ("inprogress", None)
    assert put() not in {runs, waits}


def ended(store: Store, expires_us: int | None) -> int:
    """How many the sweep ends, by the jobs' own times, or by that of the handler."""
    return sweep(store) if expires_us is None else sweep(store, "h", expires_us)


def test_its_request_fails(store: Store) -> None:
    request_id = submit(store, workflow("w", "a", "b<a"))
    sql(store, "UPDATE workerd_jobs SET expires_at = '2001-01-01 00:00:00.000000' WHERE handler = 'a'")
    assert sweep(store) == 1
    row, jobs = store.read(lambda tx: requests.get(tx, request_id))
    assert row.status == "failed"
    assert row.error is not None
    assert row.error.startswith('"a" expired: It had to start as soon as it was due')
    assert [one.reason for one in jobs] == ["expired"]


def test_a_row_that_is_claimed_meanwhile_is_left(store: Store) -> None:
    job_id = enqueue(store, "h", expires_in=MINUTE)
    keys = [(job_id, 1)]
    finish(store, "h")
    age(store, 61)
    store.run(lambda tx: expiry._end(tx, keys, None))
    assert state(store, job_id) == ("completed", "ok")


@pytest.mark.parametrize("given", [{}, {"expires_in": MINUTE}])
def test_only_what_waits_and_expires_is_in_the_index(store: Store, given: dict[str, Any]) -> None:
    """Nothing of plain jobs, nor of those that have begun."""
    enqueue(store, "h", **given)

    def entries() -> int:
        row = store.read(lambda tx: tx.one("SELECT COUNT(due_at) FROM workerd_jobs"))
        return 0 if row is None else int(row[0])

    assert entries() == len(given)
    finish(store, "h")
    assert entries() == 0
