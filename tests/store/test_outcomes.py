"""Ends: one for each attempt, recorded once, with everything that follows and nothing that does not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.support import storing
from tests.support.storing import NODE, claims, close, enqueue, job, outcome, sql, status, value
from workerd import clock
from workerd.errors import StoreRefused
from workerd.ingester import writer
from workerd.job import COOLER_KEY, Claim, Status
from workerd.messages import Progress
from workerd.outcome import NextAttempt, Outcome, Reason, Usage, lost, released
from workerd.policy import next_after_loss
from workerd.store import claims as store_claims
from workerd.store import held_attempts, intervals, job_control, jobs, outcomes
from workerd.store.base import Store

OTHER = store_claims.NodeIdent(b"o" * 16, "two")


def claimed(store: Store, **given: Any) -> Claim:
    enqueue(store, "h", **given)
    (claim,) = claims(store, "h")
    return claim


def again(o: Outcome, **changes: Any) -> Outcome:
    return msgspec.structs.replace(o, **changes)


def test_an_end_is_recorded_whole(store: Store) -> None:
    """Every column of the outcome is in the row, and its times are in order."""
    claim = claimed(store)
    told = outcome(
        claim, payload=b"\x00\xff'\\", payload_type="bytes", error="e'\\\n\x00😀", stack="s" * 10_000,
        exit_signal=9, exit_code=-3, started_at=claim.claimed_at + 5, finished_at=claim.claimed_at + 7,
        usage=Usage(2, 1, 30_000), pid=4711, progress=0.5, note="half",
    )  # fmt: skip
    assert close(store, [told]) == 1
    row = job(store, claim.id).attempts[0]
    assert (row.status, row.reason, row.success) == ("completed", "ok", True)
    assert (row.payload, row.payload_type, row.error) == (b"\x00\xff'\\", "bytes", "e'\\\n\x00😀")
    assert (row.stack, row.exit_signal, row.exit_code) == ("s" * 10_000, 9, -3)
    assert (row.run_us, row.cpu_us, row.max_rss_kib, row.pid) == (2, 1, 30_000, 4711)
    assert (row.progress, row.note) == (0.5, "half")
    assert (row.started_at, row.finished_at) == (claim.claimed_at + 5, claim.claimed_at + 7)
    assert row.ingested_at is not None
    assert row.ingested_at >= claim.claimed_at + 7


@pytest.mark.parametrize(
    ("started", "finished"),
    [(-5, -9), (10**9, 10**10), (7, 3), (None, None), (None, 4), (10**9, 1)],
)
def test_times_are_put_in_order(store: Store, started: int | None, finished: int | None) -> None:
    """Whatever the clocks read, claimed <= started <= finished <= ingested."""
    claim = claimed(store)
    shifted = {
        "started_at": None if started is None else claim.claimed_at + started,
        "finished_at": None if finished is None else claim.claimed_at + finished,
    }
    assert close(store, [outcome(claim, **shifted)]) == 1
    row = job(store, claim.id).row
    assert row.claimed_at is not None
    assert row.finished_at is not None
    assert row.ingested_at is not None
    assert row.claimed_at <= (row.started_at or row.claimed_at) <= row.finished_at <= row.ingested_at
    assert (row.started_at is None) == (started is None)


def test_a_second_answer_changes_nothing(store: Store) -> None:
    """The same outcome again, or another one, is void, and nothing follows from it."""
    claim = claimed(store)
    assert close(store, [outcome(claim)]) == 1
    assert close(store, [outcome(claim)]) == 0
    assert close(store, [outcome(claim, Status.RETRY)]) == 0
    assert [(a.attempt, a.status) for a in job(store, claim.id).attempts] == [(1, "completed")]


def test_an_outcome_twice_in_one_batch_counts_once(store: Store) -> None:
    """Sent again and written together, it is one end with one retry."""
    claim = claimed(store)
    told = outcome(claim, Status.RETRY)
    assert close(store, [told, told]) == 1
    assert [(a.attempt, a.status) for a in job(store, claim.id).attempts] == [(1, "retry"), (2, "new")]


@pytest.mark.parametrize("wrong", ["claimed_at", "node", "attempt", "id"])
def test_an_outcome_of_another_claim_is_void(store: Store, wrong: str) -> None:
    """A statement that names another claim, node, attempt or job closes nothing of this one."""
    claim = claimed(store)
    told = {
        "claimed_at": again(outcome(claim), claimed_at=claim.claimed_at - 1),
        "node": again(outcome(claim), node_id=OTHER.id),
        "attempt": again(outcome(claim), attempt=2),
        "id": again(outcome(claim), id=b"z" * 16),
    }[wrong]
    assert close(store, [told]) == 0
    assert status(store, claim.id) == "inprogress"


def test_a_late_outcome_after_a_rescue_is_void(store: Store) -> None:
    """The rescuer's `lost` counts; the dead node's own answer, in the same batch or later, does not."""
    claim = claimed(store)
    lost = outcome(claim, Status.RETRY, Reason.LOST, node_id=NODE.id, next=NextAttempt(0, 0, 0, 1))
    assert close(store, [lost], OTHER) == 1
    assert close(store, [outcome(claim)]) == 0
    (second,) = claims(store, "h", node=OTHER)
    assert (second.attempt, second.losses) == (2, 1)
    assert close(store, [outcome(second), outcome(claim)], OTHER) == 1
    assert status(store, claim.id) == "completed"


def test_void_and_good_outcomes_in_one_batch(store: Store) -> None:
    """Only outcomes that took effect are returned and have consequences."""
    store.run(lambda tx: jobs.insert(tx, [jobs.NewJob(handler="h") for _ in range(20)]))
    taken = claims(store, "h")
    assert close(store, [outcome(c) for c in taken[::2]]) == 10
    told = [outcome(c, Status.RETRY) for c in taken]
    effective = store.run(lambda tx: writer.close(tx, told, NODE.id)).refs
    assert effective == {c.ref for c in taken[1::2]}
    assert value(store, "SELECT COUNT(*) FROM workerd_jobs WHERE attempt = 2") == 10


def test_the_history_keeps_every_attempt(store: Store) -> None:
    """A retry closes its row and inserts the next with all that was given; one row is not `retry`."""
    given: dict[str, Any] = {
        "vars": b'{"a":1}', "meta": b'{"m":1}', "priority": 4, "unique_key": "k",
        "deadline_ms": 5, "max_attempts": 9,
    }  # fmt: skip
    claim = claimed(store, **given)
    told = outcome(claim, Status.RETRY, Reason.ERROR, error="boom", next=NextAttempt(0, 1, 2, 3))
    assert close(store, [told]) == 1
    (second,) = claims(store, "h")
    assert (second.id, second.attempt) == (claim.id, 2)
    assert (second.failures, second.crashes, second.losses) == (1, 2, 3)
    assert (second.vars, second.meta, second.unique_key) == (b'{"a":1}', b'{"m":1}', "k")
    assert (second.deadline_ms, second.max_attempts) == (5, 9)
    assert close(store, [outcome(second, Status.RETRY, next=NextAttempt(60 * clock.SECOND, 2, 2, 3))]) == 1
    attempts = job(store, claim.id).attempts
    assert [(a.status, a.error) for a in attempts] == [
        ("retry", "boom"),
        ("retry", None),
        ("scheduled", None),
    ]
    assert {a.priority for a in attempts} == {4}
    made = [a.created_at for a in attempts if a.created_at is not None]
    assert made == sorted(made)
    assert made[0] < made[1] < made[2]
    assert job(store, claim.id).row.created_at == made[0]
    assert attempts[2].run_at is not None
    assert attempts[1].ingested_at is not None
    assert attempts[2].run_at == attempts[1].ingested_at + 60 * clock.SECOND


def test_a_release_gives_the_row_back_unharmed(store: Store) -> None:
    """The row is `new` again, no attempt is spent, and an answer to the old claim is void."""
    claim = claimed(store)
    assert close(store, [released(claim)]) == 1
    assert close(store, [released(claim)]) == 0
    row = job(store, claim.id).row
    assert (row.status, row.attempt, row.node_id, row.claimed_at) == ("new", 1, None, None)
    (second,) = claims(store, "h")
    assert (second.ref, second.claimed_at > claim.claimed_at) == (claim.ref, True)
    assert close(store, [outcome(claim), released(claim)]) == 0
    assert close(store, [outcome(second)]) == 1


def test_one_refused_row_leaves_nothing_of_its_batch(store: Store) -> None:
    """The batch is refused whole, so that the ingester halves it; the same outcomes without it go in."""
    store.run(lambda tx: jobs.insert(tx, [jobs.NewJob(handler="h") for _ in range(6)]))
    told = [outcome(c) for c in claims(store, "h")]
    for bad in (
        {"error": "a\ud800"},
        {"usage": Usage(-1)},
        {"usage": Usage(run_us=1 << 70)},
        {"progress": float("nan")},
    ):
        if store.dialect.name == "sqlite" and "progress" in bad:
            continue
        with pytest.raises(StoreRefused):
            close(store, [*told[:3], again(told[3], **bad), *told[4:]])
        assert value(store, "SELECT COUNT(*) FROM workerd_jobs WHERE status = 'inprogress'") == 6
    assert close(store, told) == 6


def test_a_statement_that_is_longer_than_the_server_takes(mysql_url: str, opened: Any) -> None:
    """It is refused here, before the server hangs up; the connection lives on."""
    store = opened(mysql_url)
    store.migrate()
    claim = claimed(store)
    packet = store.max_packet
    assert packet is not None
    with pytest.raises(StoreRefused) as caught:
        close(store, [outcome(claim, payload=b"x" * (packet // 2 + 1024))])
    assert caught.value.code == 1153
    assert close(store, [outcome(claim, payload=b"x" * (packet // 2 - 65_536))]) == 1


def test_many_long_payloads_in_one_batch(store: Store) -> None:
    """Fifty payloads and stacks of 30 KiB are recorded together, each in its own row."""
    store.run(lambda tx: jobs.insert(tx, [jobs.NewJob(handler="h") for _ in range(50)]))
    taken = claims(store, "h")
    told = [outcome(c, payload=bytes([n]) * 30_000, stack=f"{n}" * 9_000) for n, c in enumerate(taken)]
    assert close(store, told) == 50
    for n, c in enumerate(taken):
        row = job(store, c.id).attempts[0]
        assert (row.payload, row.stack) == (bytes([n]) * 30_000, f"{n}" * 9_000)


def test_a_next_attempt_that_is_there_already(store: Store) -> None:
    """Whichever program inserted it, it is the next attempt: the current one still ends as `retry`."""
    first, second = claimed(store), claimed(store)
    sql(store, "INSERT INTO workerd_jobs (id, attempt, handler) VALUES (%s, 2, 'h')", first.id)
    assert close(store, [outcome(first, Status.RETRY), outcome(second, Status.RETRY)]) == 2
    for claim in (first, second):
        assert [a.status for a in job(store, claim.id).attempts] == ["retry", "new"]


def test_a_retry_whose_key_was_taken_ends_as_failure(store: Store) -> None:
    """Its error names the cause, and the rest of the batch is not affected."""
    if store.dialect.name == "mysql":
        pytest.skip("its index is checked at every moment: there is no way into this state")
    first, second = claimed(store, unique_key="k"), claimed(store)
    enqueue(store, "h", unique_key="other")
    sql(store, "DROP INDEX workerd_live")
    sql(store, "UPDATE workerd_jobs SET unique_key = 'other' WHERE id = %s", first.id)
    sql(
        store,
        "CREATE UNIQUE INDEX workerd_live ON workerd_jobs (handler, unique_key)"
        " WHERE unique_key IS NOT NULL AND status IN ('scheduled','new')",
    )
    assert close(store, [outcome(first, Status.RETRY, error="boom"), outcome(second, Status.RETRY)]) == 2
    row = job(store, first.id).row
    assert (row.status, row.success) == ("failure", False)
    assert row.error == "boom; not tried again: another live job holds its unique key"
    assert status(store, second.id) == "new"


@pytest.mark.parametrize("reason", [Reason.LOST, Reason.INTERRUPTED])
def test_a_job_that_is_to_be_cancelled_is_not_tried_again(store: Store, reason: Reason) -> None:
    """However its attempt ended; its request is cancelled with it, and the rest of the batch goes on."""
    request_id = storing.submit(store, storing.workflow("w", "h", "b<h"))
    (first,) = claims(store, "h")
    second = claimed(store)
    assert store.run(lambda tx: job_control.cancel(tx, first.id)) == "asked"
    given = {"error": "gone", "error_class": "workerd.Lost", "fingerprint": b"f" * 8}
    ended = [outcome(first, Status.RETRY, reason, **given), outcome(second, Status.RETRY, reason)]
    assert close(store, ended) == 2
    row = job(store, first.id).row
    assert (row.attempt, row.status, row.reason, row.success) == (1, "cancelled", "cancelled", None)
    assert row.error == "gone; not tried again: the job was cancelled"
    assert (row.error_class, row.fingerprint) == (None, None)
    assert storing.states(store, request_id) == ("cancelled", {"h": "cancelled"})
    assert [a.status for a in job(store, second.id).attempts] == ["retry", "new"]


def _recurring(store: Store) -> Claim:
    sql(store, "INSERT INTO workerd_schedules (name, kind, expression) VALUES ('h', 'cooler', '1s')")
    store.run(lambda tx: intervals.ensure_next(tx, "h", 1.0))
    (claim,) = claims(store, "h")
    assert claim.unique_key == COOLER_KEY
    return claim


@pytest.mark.parametrize("ended", [Status.COMPLETED, Status.FAILURE, Status.CANCELLED])
def test_a_chain_goes_on_whatever_its_run_became(store: Store, ended: Status) -> None:
    """The closing transaction inserts the next run, `scheduled`, at the store's now and the pause."""
    claim = _recurring(store)
    told = outcome(claim, ended, next_run_us=90 * clock.SECOND)
    assert close(store, [told]) == 1
    assert close(store, [told]) == 0
    rows = store.read(
        lambda tx: tx.query("SELECT run_at, status FROM workerd_jobs WHERE unique_key = %s AND id <> %s",
                            (COOLER_KEY, claim.id))
    )  # fmt: skip
    ingested = job(store, claim.id).row.ingested_at
    assert ingested is not None
    assert rows == [(clock.to_text(ingested + 90 * clock.SECOND).encode(), b"scheduled")]


def test_a_retry_of_a_run_keeps_the_chain(store: Store) -> None:
    """While a run is tried again there is no next one beside it."""
    claim = _recurring(store)
    assert close(store, [outcome(claim, Status.RETRY, next_run_us=clock.SECOND)]) == 1
    assert value(store, "SELECT COUNT(*) FROM workerd_jobs WHERE status IN ('new','scheduled')") == 1


def test_only_the_newest_skipped_run_is_kept(store: Store) -> None:
    """A chain that is skipped each time leaves one row, not thousands."""
    claim = _recurring(store)
    for _ in range(4):
        told = outcome(claim, Status.COMPLETED, Reason.SKIPPED, next_run_us=0)
        assert close(store, [again(told, success=None)]) == 1
        sql(store, "UPDATE workerd_jobs SET status = 'new' WHERE status = 'scheduled'")
        (claim,) = claims(store, "h")
    assert value(store, "SELECT COUNT(*) FROM workerd_jobs WHERE reason = 'skipped'") == 1


def test_handlers_with_new_rows_are_returned(store: Store) -> None:
    """A retry at once and a release wake their handlers; a retry for later does not."""
    store.run(lambda tx: jobs.insert(tx, [jobs.NewJob(handler=h) for h in ("now", "later", "back")]))
    now, later, back = (claims(store, h)[0] for h in ("now", "later", "back"))
    told = [
        outcome(now, Status.RETRY),
        outcome(later, Status.RETRY, next=NextAttempt(10**6, 1, 0, 0)),
        released(back),
    ]
    woken = store.run(lambda tx: writer.close(tx, told, NODE.id)).woken
    assert woken == {"now", "back"}


def test_an_empty_batch(store: Store) -> None:
    """An empty batch does nothing."""
    assert close(store, []) == 0


def test_progress_reaches_only_the_attempt_that_runs(store: Store) -> None:
    """Progress of a running attempt is in its row; progress of an ended one is dropped."""
    claim = claimed(store)
    told = Progress(claim.id, 1, claim.claimed_at, claim.claimed_at + 3, 4711, 0.25, "a quarter 😀")
    assert store.run(lambda tx: outcomes.progress(tx, [told], OTHER.id)) == 0
    assert store.run(lambda tx: outcomes.progress(tx, [told], NODE.id)) == 1
    row = job(store, claim.id).row
    assert (row.progress, row.note, row.pid, row.started_at) == (
        0.25,
        "a quarter 😀",
        4711,
        claim.claimed_at + 3,
    )
    assert close(store, [outcome(claim)]) == 1
    assert job(store, claim.id).row.note == "a quarter 😀"
    assert store.run(lambda tx: outcomes.progress(tx, [told], NODE.id)) == 0


def test_a_lost_attempt_keeps_what_its_pool_reported(store: Store) -> None:
    """Who ran it, since when, and so for how long; one that reported nothing has none of them."""
    claim, silent = claimed(store), claimed(store)
    message = Progress(claim.id, 1, claim.claimed_at, claim.claimed_at, 4711, None, None)
    store.run(lambda tx: outcomes.progress(tx, [message], NODE.id))
    claimed_at, started = claim.claimed_at - 91_000_000, claim.claimed_at - 90_000_007
    times = [clock.to_text(claimed_at), clock.to_text(started)]
    sql(store, "UPDATE workerd_jobs SET claimed_at = %s, started_at = %s WHERE id = %s", *times, claim.id)
    held = store.read(lambda tx: held_attempts.held(tx, NODE.id))
    assert {of.id for of in held} == {claim.id, silent.id}
    assert close(store, [lost(of, "its pool died", next_after_loss(of)) for of in held]) == 2
    row = job(store, claim.id).attempts[0]
    assert (row.reason, row.pid, row.started_at) == ("lost", 4711, started)
    assert row.finished_at is not None
    assert row.run_us == row.finished_at - started
    row = job(store, silent.id).attempts[0]
    assert (row.reason, row.pid, row.started_at, row.run_us) == ("lost", None, None, None)


def test_what_a_lost_commit_did_can_be_asked(store: Store) -> None:
    """The keys that carry exactly this moment."""
    claim = claimed(store)
    moment = 0

    def work(tx: Any) -> None:
        nonlocal moment
        moment = tx.now
        writer.close(tx, [outcome(claim)], NODE.id)

    store.run(work)
    assert store.read(lambda tx: outcomes.ingested(tx, [claim.ref], moment)) == {claim.ref}
    assert store.read(lambda tx: outcomes.ingested(tx, [claim.ref], moment + 1)) == set()
