"""Requests of workflows: picked up, swept, started again."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.support import storing as s
from tests.support.dispatching import FLOW, MakeHarness, job_rows
from tests.support.rows import Rows
from workerd.clock import to_text
from workerd.config.model import PickupConfig
from workerd.config.schedule_config import ScheduleConfig
from workerd.config.workflow_config import WorkflowConfig
from workerd.runtime.sockets import poke
from workerd.store import requests
from workerd.store.base import Store


def test_a_request_is_picked_up(make_harness: MakeHarness, store: Store) -> None:
    """A queuing request gets the jobs of its first step, with its params."""
    harness = make_harness(poll=0.05, workflows={"flow": FLOW})
    harness.start()
    pool = harness.pool("h").connect()
    pool.demand(5)
    harness.until(lambda: harness.is_up)
    made = store.run(lambda tx: requests.submit(tx, "flow", b'{"id": 7}'))
    poke(harness.paths.wake)
    harness.until(lambda: pool.claims)
    (claim,) = pool.claims.values()
    assert (claim.request_id, claim.name, claim.params) == (made.id, "first", b'{"id": 7}')


def test_requests_may_be_picked_up_at_set_times(make_harness: MakeHarness, store: Store) -> None:
    """With `pickup.requests_new` they wait for its tick; all that are waiting are picked up then."""
    harness = make_harness(
        poll=0.05, workflows={"flow": FLOW}, pickup=PickupConfig(requests_new="*/2 * * * * *")
    )
    for _ in range(60):
        store.run(lambda tx: requests.submit(tx, "flow", b"{}"))
    harness.start()
    harness.until(lambda: len(job_rows(store, "h")) == 60)


def test_an_abandoned_request_continues(make_harness: MakeHarness, store: Store) -> None:
    """Another program moved it half-way: the sweep inserts the missing jobs."""
    harness = make_harness(poll=0.05, workflows={"flow": FLOW})
    made = store.run(lambda tx: requests.submit(tx, "flow", b"{}"))
    store.run(
        lambda tx: tx.execute("UPDATE workerd_requests SET status = 'inprogress' WHERE id = %s", (made.id,))
    )
    harness.start()
    harness.until(lambda: job_rows(store, "h"))


@pytest.mark.slow
@pytest.mark.parametrize("store_url", ["mysql"], indirect=True)
def test_a_locked_job_of_a_request_stops_no_other(
    make_harness: MakeHarness, store: Store, store_url: str
) -> None:
    """The sweep leaves that request out, after it has waited for the lock, and comes back to it."""
    harness = make_harness(poll=0.05, workflows={"flow": FLOW})
    locked, other = stuck_request(store), stuck_request(store)
    with Rows(store_url).connection() as lock, lock.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(
            "SELECT * FROM workerd_jobs WHERE id = %s AND attempt = 1 FOR UPDATE", (locked.waiting,)
        )
        harness.start()
        harness.until(lambda: s.status(store, other.waiting) == "cancelled")
        assert s.status(store, locked.waiting) == "new"
        lock.rollback()
    harness.until(lambda: s.status(store, locked.waiting) == "cancelled")


class StuckRequest(NamedTuple):
    """A request with a job that waits beside a failed one."""

    id: bytes
    waiting: bytes


def stuck_request(store: Store) -> StuckRequest:
    request = s.submit(store, s.workflow("flow", "a", "b"))
    waiting = s.value(store, "SELECT id FROM workerd_jobs WHERE request_id = %s AND name = 'b'", request)
    now = to_text(store.read(lambda tx: tx.now) + 1_000_000)
    s.sql(
        store,
        "UPDATE workerd_jobs SET status = 'failure', finished_at = %s, ingested_at = %s"
        " WHERE request_id = %s AND name = 'a'",
        now, now, request,
    )  # fmt: skip
    return StuckRequest(request, waiting)


def test_a_recurring_workflow_starts_by_itself(make_harness: MakeHarness, store: Store) -> None:
    """A workflow with a cooler needs no request."""
    recurring = WorkflowConfig(name="loop", jobs=FLOW.jobs[:1], schedule=ScheduleConfig(cooler=60.0))
    harness = make_harness(poll=0.05, workflows={"loop": recurring})
    harness.start()
    pool = harness.pool("h").connect()
    pool.demand(5)
    harness.until(lambda: pool.claims)
    (claim,) = pool.claims.values()
    assert claim.workflow == "loop"
