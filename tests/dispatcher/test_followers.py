"""A dispatcher and jobs that wait behind one of their unique key that is no more."""

from __future__ import annotations

from tests.support import storing
from tests.support.dispatching import MakeHarness
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.job_spec import JobSpec, check
from workerd.store import duplicates
from workerd.store.base import Store


def test_what_waits_behind_a_job_that_a_person_deleted_is_claimed(
    make_harness: MakeHarness, store: Store
) -> None:
    """It has its own key then."""
    job = check(JobSpec(handler="h", unique_key="k", on_conflict="follow"))
    store.run(lambda tx: duplicates.insert(tx, [job]))
    [running] = storing.claims(store, "h")
    [follower] = store.run(lambda tx: duplicates.insert(tx, [job]))
    store.run(lambda tx: tx.execute("DELETE FROM workerd_jobs WHERE id = %s", (running.id,)))
    pools = {"h": PoolConfig(name="h", handlers=(HandlerConfig(name="h", call="x:y", pool="h"),))}
    harness = make_harness(poll=60.0, pools=pools)
    harness.start()
    pool = harness.pool("h").connect()
    pool.demand(1)
    harness.until(lambda: pool.claims)
    [claim] = pool.claims.values()
    assert (claim.id, claim.unique_key) == (follower.id, "k")
