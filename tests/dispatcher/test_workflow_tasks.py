"""Requests of workflows: picked up, swept, started again."""

from __future__ import annotations

from tests.support.dispatching import FLOW, MakeHarness, job_rows
from workerd.config.model import PickupConfig, ScheduleConfig, WorkflowConfig
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
