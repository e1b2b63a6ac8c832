"""Jobs are listed, cancelled and retried on both engines."""

from __future__ import annotations

from functools import partial

import pytest

from tests.support import storing
from workerd.document_types import Document, Enqueued
from workerd.errors import Conflict, NotFound
from workerd.job import Status, id_text, parse_id
from workerd.job_spec import NewJob
from workerd.operations import jobs
from workerd.operations.actor import Actor
from workerd.redaction import NOTHING
from workerd.store.base import Store, Tx
from workerd.store.jobs import insert_new


def test_a_cancelled_job_can_be_retried(store: Store, actor: Actor) -> None:
    """Cancel ends a waiting job; a second cancel conflicts; a retry inserts the next attempt."""
    job_id = storing.enqueue(store, "mail")
    assert not store.read(lambda tx: jobs.ended(tx, job_id))
    assert store.run(lambda tx: jobs.cancel(tx, actor, job_id)) == "ended"
    assert store.read(lambda tx: jobs.ended(tx, job_id))
    with pytest.raises(Conflict):
        store.run(lambda tx: jobs.cancel(tx, actor, job_id))
    assert store.run(lambda tx: jobs.retry(tx, actor, job_id)) == 2
    document = store.read(lambda tx: jobs.get(tx, job_id))
    assert (document["status"], len(document["attempts"])) == ("new", 2)


def test_jobs_are_listed_in_pages_without_payloads(store: Store) -> None:
    """Newest first, by handler and status."""
    ids = [id_text(storing.enqueue(store, "mail")) for _ in range(3)]
    storing.enqueue(store, "other")
    first = store.read(lambda tx: jobs.list_(tx, handler="mail", status=Status.NEW, limit=2))
    rest = store.read(lambda tx: jobs.list_(tx, handler="mail", status=Status.NEW, after=first.next))
    assert [job["id"] for job in first.jobs + rest.jobs] == ids[::-1]
    assert rest.next is None
    assert not {"payload", "attempts"} & first.jobs[0].keys()


def test_details_have_the_queue_time_and_a_part_of_the_payload(store: Store) -> None:
    """The whole payload is not read."""
    job_id = storing.enqueue(store, "mail")
    (claim,) = storing.claims(store, "mail")
    payload = {"payload": b"x" * 100, "payload_type": "bytes"}
    storing.close(store, [storing.outcome(claim, started_at=claim.claimed_at, **payload)])
    details = store.read(lambda tx: jobs.details(tx, job_id, 10))
    assert details.payload == (b"x" * 10, 100, "bytes")
    assert details.job["payload"] is None
    assert not details.cancel_requested
    queue_us = details.queue_us[1]
    assert queue_us is not None
    assert queue_us >= 0
    with pytest.raises(NotFound):
        store.read(lambda tx: jobs.details(tx, bytes(16), 10))


def test_details_have_the_stacks_of_the_newest_attempts(store: Store) -> None:
    """A thousand attempts have 64 MiB of them; the job itself has all."""
    job_id = storing.enqueue(store, "mail")
    count = jobs.MAX_STACKS + 3
    for n in range(count):
        last = n == count - 1
        status = Status.FAILURE if last else Status.RETRY
        storing.finish(store, "mail", status, error=f"error {n}", stack=f"stack {n}")
    whole = store.read(lambda tx: jobs.get(tx, job_id))["attempts"]
    assert [one["stack"] for one in whole] == [f"stack {n}" for n in range(count)]
    found = store.read(lambda tx: jobs.details(tx, job_id, 10)).job["attempts"]
    assert [one["attempt"] for one in found] == list(range(1, count + 1))
    for name in ("stack", "error"):
        assert [one[name] for one in found] == [None] * 3 + [f"{name} {n}" for n in range(3, count)]


def test_a_job_that_was_inserted_is_shown_as_by_get(store: Store) -> None:
    """What is written is not read back, so it must be what would be read."""
    plain = NewJob(handler="mail")
    full = NewJob(
        handler="mail", vars='{"text": "ä€𝄞\'\\"}'.encode(), meta=b'{"tenant":"7"}', priority=-3,
        delay=5_000_000, deadline_ms=1500, max_attempts=2, group_key="g", expires_in=60_000_000,
    )  # fmt: skip
    due = NewJob(handler="mail", run_at=1_000_000, expires_at=2_000_000)

    def work(tx: Tx) -> list[tuple[Enqueued, Document]]:
        return [jobs.created(row, NOTHING) for row in insert_new(tx, [plain, full, due])]

    for enqueued, document in store.run(work):
        assert (enqueued.id, enqueued.created) == (document["id"], True)
        assert document == store.read(partial(jobs.get, job_id=parse_id(enqueued.id)))


def test_an_absent_job_is_not_found(store: Store, actor: Actor) -> None:
    """By every operation on one job; only the bulk look-up leaves it out."""
    absent, job_id = bytes(16), storing.enqueue(store, "mail")
    for look_up in (jobs.get, jobs.payload, jobs.ended):
        with pytest.raises(NotFound):
            store.read(partial(look_up, job_id=absent))
    for act in (jobs.cancel, jobs.retry):
        with pytest.raises(NotFound):
            store.run(partial(act, actor=actor, job_id=absent))
    store.run(lambda tx: jobs.cancel(tx, actor, job_id))
    assert store.read(lambda tx: jobs.ended_of(tx, [absent, job_id])) == {job_id}
