"""A store that comes back without its last commits: nothing runs beside itself, and no run is forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.dispatching import DispatcherHarness, FakePool, insert_jobs, job_state, node_config
from tests.support.servers import DatabaseServer
from tests.support.storing import job, sql
from workerd.dispatcher import settlement
from workerd.job import COOLER_KEY, AttemptRef
from workerd.outcome import Reason
from workerd.store.base import Store

BACK_AS_NEW = "UPDATE workerd_jobs SET status = 'new', node_id = NULL, node = NULL, claimed_at = NULL"


class FailoverHarness:
    """A dispatcher, a pool that holds what it claims, and a server that goes away and comes back."""

    def __init__(self, folder: Path, server: DatabaseServer, store: Store, url: str) -> None:
        self.server = server
        self.store = store
        self.harness = DispatcherHarness(store, node_config(folder, url, poll=0.05))

    def start(self, handler: str, count: int) -> FakePool:
        """Start; the pool of `handler` claims `count` jobs."""

        def poll_often() -> None:
            settlement.SUCCESSOR_POLL_S = 0.1

        self.harness.start(poll_often)
        pool = self.harness.pool(handler).connect()
        pool.demand(count)
        self.harness.until(lambda: len(pool.claims) == count)
        self.harness.until(lambda: self.harness.settled())
        return pool

    def fail_over(self, *statements: str) -> None:
        """Undo commits, then let the server be away and come back."""
        for statement in statements:
            sql(self.store, statement)
        self.server.kill9()
        self.harness.until(lambda: self.harness.beat.info["store"]["state"] == "away")
        self.store.close()

    def come_back(self) -> None:
        """And wait until the dispatcher has compared."""
        rounds = self.harness.beat.info["settlements"]
        self.server.start()
        self.harness.until(lambda: self.harness.settled(rounds + 1))


@pytest.fixture
def failover(
    tmp_path: Path, durable_server: DatabaseServer, opened: Callable[..., Store]
) -> Iterator[FailoverHarness]:
    url = durable_server.url(durable_server.new_database())
    store = opened(url)
    store.migrate()
    made = FailoverHarness(tmp_path, durable_server, store, url)
    yield made
    made.harness.close()


@pytest.mark.slow
def test_claims_that_the_store_lost_are_taken_back(failover: FailoverHarness) -> None:
    """The same attempts of the pool that runs them: no other claim of them is made, and their ends count."""
    ids = insert_jobs(failover.store, "h", 2)
    pool = failover.start("h", 2)
    before = {ref: claim.claimed_at for ref, claim in pool.claims.items()}
    failover.fail_over(BACK_AS_NEW)
    pool.demand(5)
    failover.come_back()
    fresh = insert_jobs(failover.store, "h", 1)
    failover.harness.until(lambda: len(pool.claims) == 3)
    assert pool.batches[0] == 2
    assert sum(pool.batches) == 3, "only the fresh job was claimed after the absence"
    assert set(pool.claims) == {AttemptRef(made, 1) for made in (*ids, *fresh)}
    rows = [job(failover.store, made).row for made in ids]
    assert {row.node_id for row in rows} == {failover.harness.incarnation}
    assert {AttemptRef(row.id, 1): row.claimed_at for row in rows} == before
    assert not failover.harness.ingester.outcomes


@pytest.mark.slow
def test_a_run_whose_end_the_store_lost_is_lost_and_not_forgotten(failover: FailoverHarness) -> None:
    """One is back as `new`, one as `inprogress`: both may have run, so both end as lost and run again."""
    back_as_new, in_progress = insert_jobs(failover.store, "h", 2)
    pool = failover.start("h", 2)
    pool.claims.clear()  # both have ended, which was recorded and is gone
    failover.harness.ingester.ended = [AttemptRef(back_as_new, 1), AttemptRef(in_progress, 1)]
    failover.fail_over(f"{BACK_AS_NEW} WHERE id = x'{back_as_new.hex()}'")
    pool.demand(5)
    failover.come_back()
    failover.harness.until(lambda: len(failover.harness.ingester.outcomes) == 2)
    assert {outcome.reason for outcome in failover.harness.ingester.outcomes} == {Reason.LOST}
    failover.harness.until(lambda: len(pool.claims) == 2)
    assert set(pool.claims) == {AttemptRef(back_as_new, 2), AttemptRef(in_progress, 2)}


@pytest.mark.slow
def test_what_ended_before_the_ingester_began_to_remember_may_have_run(failover: FailoverHarness) -> None:
    """An ingester that was restarted does not know what its predecessor has written."""
    (made,) = insert_jobs(failover.store, "h", 1)
    pool = failover.start("h", 1)
    pool.claims.clear()
    failover.harness.ingester.ended_since_ns += 60_000_000_000
    failover.fail_over()
    failover.come_back()
    failover.harness.until(lambda: failover.harness.ingester.outcomes)
    assert [outcome.reason for outcome in failover.harness.ingester.outcomes] == [Reason.LOST]
    assert job_state(failover.store, made)[2] == 2


@pytest.mark.slow
@pytest.mark.parametrize("cooler", [False, True], ids=["a retry", "the next run of a cooler"])
def test_an_earlier_run_is_not_settled_beside_a_later_one(failover: FailoverHarness, cooler: bool) -> None:
    """The store lost the end of the first and the row of the second, which runs here."""
    first, second = insert_jobs(failover.store, "h", 2)
    pool = failover.start("h", 2)
    held = AttemptRef(second, 1) if cooler else AttemptRef(first, 2)
    claim = pool.claims.pop(AttemptRef(second, 1))
    del pool.claims[AttemptRef(first, 1)]
    pool.claims[held] = claim
    failover.harness.ingester.ended = [AttemptRef(first, 1)]
    failover.fail_over(
        f"DELETE FROM workerd_jobs WHERE id = x'{second.hex()}'",
        f"UPDATE workerd_jobs SET unique_key = '{COOLER_KEY}'" if cooler else "DO 0",
    )
    failover.come_back()
    failover.harness.serve(0.5)
    assert not failover.harness.ingester.outcomes
    pool.claims.clear()  # it has ended
    failover.harness.until(lambda: failover.harness.ingester.outcomes)
    (outcome,) = failover.harness.ingester.outcomes
    assert (outcome.ref, outcome.reason) == (AttemptRef(first, 1), Reason.LOST)


@pytest.mark.slow
def test_without_a_loss_nothing_changes(failover: FailoverHarness) -> None:
    """An absence alone costs no attempt: what is held stays held, what was never handed over is released."""
    ids = insert_jobs(failover.store, "h", 2)
    pool = failover.start("h", 2)
    dropped = AttemptRef(ids[1], 1)
    del pool.claims[dropped]  # its claim never reached the pool
    failover.fail_over()
    failover.come_back()
    failover.harness.until(lambda: failover.harness.ingester.outcomes)
    assert [(o.ref, o.reason) for o in failover.harness.ingester.outcomes] == [(dropped, None)]
    assert {job_state(failover.store, made)[2] for made in ids} == {1}
