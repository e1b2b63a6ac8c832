"""The claimer: pools get what they have capacity for, handlers and priorities in their turn."""

from __future__ import annotations

import pytest

from tests.support.dispatching import MakeHarness, insert_jobs, job_state
from workerd.config.model import PickupConfig
from workerd.errors import StoreRefused
from workerd.messages import Barrier, Outcomes
from workerd.runtime.sockets import poke
from workerd.store import claims as store_claims
from workerd.store.base import Store, Tx


def test_a_pool_gets_no_more_than_it_asked_for(make_harness: MakeHarness, store: Store) -> None:
    """Claims never exceed the capacity, and received claims are not counted twice."""
    harness = make_harness()
    harness.start()
    pool = harness.pool("h").connect()
    insert_jobs(store, "h", 30)
    pool.demand(10)
    harness.until(lambda: len(pool.claims) == 10)
    harness.serve(0.2)
    assert len(pool.claims) == 10
    pool.demand(10)
    harness.until(lambda: len(pool.claims) == 20)


def test_a_demand_that_crosses_claims_is_harmless(make_harness: MakeHarness, store: Store) -> None:
    """A Demand that was sent before the claims arrived does not bring them a second time."""
    harness = make_harness()
    harness.start()
    pool = harness.pool("h").connect()
    insert_jobs(store, "h", 30)
    pool.demand(10)
    harness.until(lambda: len(pool.claims) == 10)
    pool.received = 0  # as if it had not seen them yet
    pool.demand(10)
    harness.serve(0.2)
    assert len(pool.claims) == 10


@pytest.mark.slow
def test_rows_announced_while_their_pool_is_down_do_not_wait_for_the_poll(
    make_harness: MakeHarness, store: Store
) -> None:
    """A restarted pool gets the jobs enqueued since its death."""
    harness = make_harness(poll=60.0)
    harness.start()
    first = harness.pool("h").connect()
    first.demand(5)
    harness.until(lambda: harness.is_up and harness.settled())
    harness.serve(0.2)
    harness.report_death(first)
    harness.until(lambda: harness.settled(2))
    insert_jobs(store, "h")
    assert poke(harness.paths.wake)
    harness.serve(0.2)
    second = harness.pool("h").connect()
    second.demand(5)
    harness.until(lambda: second.claims, within=10)


def test_the_handlers_of_a_pool_share_its_capacity(make_harness: MakeHarness, store: Store) -> None:
    """A handler with many rows does not keep another of the same pool from being served."""
    harness = make_harness()
    insert_jobs(store, "busy", 200)
    insert_jobs(store, "quiet", 2)
    harness.start()
    pool = harness.pool("busy", "quiet", name="p").connect()

    def quiet_served() -> bool:
        pool.demand(1)
        return any(claim.handler == "quiet" for claim in pool.claims.values())

    harness.until(quiet_served)
    assert len(pool.claims) < 20


def test_smaller_priority_comes_first(make_harness: MakeHarness, store: Store) -> None:
    """Priority orders within a handler."""
    harness = make_harness()
    insert_jobs(store, "h", 3, priority=5)
    (urgent,) = insert_jobs(store, "h", 1, priority=-5)
    harness.start()
    pool = harness.pool("h").connect()
    pool.demand(1)
    harness.until(lambda: pool.claims)
    assert [key[0] for key in pool.claims] == [urgent]


def test_an_unreadable_row_ends_and_the_others_run(make_harness: MakeHarness, store: Store) -> None:
    """One bad row becomes a failure that names the fault; the rest of its handler is claimed."""
    harness = make_harness()
    (bad,) = insert_jobs(store, "h")
    store.run(lambda tx: make_unreadable(tx, bad))
    good = insert_jobs(store, "h", 3)
    harness.start()
    pool = harness.pool("h").connect()
    pool.demand(10)
    harness.until(lambda: {key[0] for key in pool.claims} == set(good))
    harness.until(lambda: job_state(store, bad) == ("failure", "failure", 1))
    (outcome,) = harness.ingester.outcomes
    assert "cannot be read" in (outcome.error or "")


@pytest.mark.slow
def test_an_unreadable_row_claimed_during_a_settlement_is_not_released(
    make_harness: MakeHarness, store: Store
) -> None:
    """Its failure is on the way to the ingester; no pool holds it and the store has it in progress."""
    harness = make_harness()
    harness.start()
    pool = harness.pool("h").connect()
    harness.until(lambda: harness.settled())
    harness.ingester.paused = True
    dying = harness.pool("g").connect()
    harness.serve(0.1)
    harness.report_death(dying)
    harness.until(lambda: any(isinstance(message, Barrier) for message in harness.ingester.kept))
    (bad,) = insert_jobs(store, "h")
    store.run(lambda tx: make_unreadable(tx, bad))
    pool.demand(5)
    poke(harness.paths.wake)
    harness.until(lambda: any(isinstance(message, Outcomes) for message in harness.ingester.kept))
    harness.ingester.answer_barriers()
    harness.until(lambda: harness.settled(2))
    harness.ingester.resume()
    harness.until(lambda: job_state(store, bad) == ("failure", "failure", 1))
    assert len(harness.ingester.outcomes) == 1


def make_unreadable(tx: Tx, job_id: bytes) -> None:
    """Write what only another program would: text that is no UTF-8, a date that is none."""
    if tx.dialect.name == "sqlite":
        tx.execute("UPDATE workerd_jobs SET name = CAST(%s AS TEXT) WHERE id = %s", (b"\xffA", job_id))
    else:
        tx.execute("SET SESSION sql_mode = ''")
        tx.execute("UPDATE workerd_jobs SET run_at = '0000-00-00' WHERE id = %s", (job_id,))


def test_a_handler_that_the_store_refuses_keeps_no_other_waiting(
    make_harness: MakeHarness, store: Store
) -> None:
    """Claims of several handlers share a transaction; one that is refused is found and left out."""
    harness = make_harness(poll=0.05)
    insert_jobs(store, "bad", 2)
    insert_jobs(store, "good", 2)

    def refuse() -> None:
        claim = store_claims.claim

        def refusing(tx: object, handler: str, *rest: object, **more: object) -> object:
            if handler == "bad":
                raise StoreRefused("no such thing", 1146)
            return claim(tx, handler, *rest, **more)  # type: ignore[arg-type]

        store_claims.claim = refusing  # type: ignore[assignment]

    harness.start(refuse)
    pool = harness.pool("bad", "good", name="p").connect()
    pool.demand(10)
    harness.until(lambda: len(pool.claims) == 2)
    assert {claim.handler for claim in pool.claims.values()} == {"good"}


def test_nothing_is_claimed_where_pickup_is_off(make_harness: MakeHarness, store: Store) -> None:
    """`pickup.enabled = false`: the node renews its lease and takes no work."""
    harness = make_harness(poll=0.05, pickup=PickupConfig(enabled=False))
    insert_jobs(store, "h")
    harness.start()
    pool = harness.pool("h").connect()
    pool.demand(5)
    harness.until(lambda: harness.is_up)
    harness.serve(0.5)
    assert not pool.claims


def test_jobs_may_be_picked_up_at_set_times(make_harness: MakeHarness, store: Store) -> None:
    """With `pickup.jobs` a cron expression, all waiting jobs are claimed at its ticks."""
    harness = make_harness(poll=0.05, pickup=PickupConfig(jobs="* * * * * *"))
    insert_jobs(store, "h", 12)
    harness.start()
    pool = harness.pool("h").connect()
    pool.on_claims = lambda claims: pool.demand(5)
    pool.demand(5)
    harness.until(lambda: len(pool.claims) == 12)


def test_two_generations_of_a_pool_share_its_jobs(make_harness: MakeHarness, store: Store) -> None:
    """Both ask for the same handler while the newer one starts: no row is taken twice in one transaction."""
    harness = make_harness(poll=0.05)
    harness.start()
    older = harness.pool("h", name="older").connect()
    newer = harness.pool("h", name="newer").connect()
    older.demand(2)
    newer.demand(2)
    harness.until(lambda: harness.is_up)
    made = insert_jobs(store, "h", 4)
    poke(harness.paths.wake)
    harness.until(lambda: len(older.claims) + len(newer.claims) == 4)
    assert {ref.id for ref in (*older.claims, *newer.claims)} == set(made)
    assert harness.beat.info["store"]["retries"] == 0
