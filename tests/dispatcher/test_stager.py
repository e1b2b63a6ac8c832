"""The stager: polls, due rows, cancels and pauses."""

from __future__ import annotations

import msgspec
import pytest

from tests.support.dispatching import MakeHarness, idle, insert_jobs
from workerd.messages import Scheduled
from workerd.runtime.sockets import poke
from workerd.store import handlers, job_control
from workerd.store.base import Store


@pytest.mark.slow
def test_a_row_that_is_due_soon_does_not_wait_for_the_poll(make_harness: MakeHarness, store: Store) -> None:
    """A wake-up carries the due time of a scheduled row; malformed ones are ignored."""
    harness, pool = idle(make_harness, 60.0, "h")
    (job,) = insert_jobs(store, "h", 1, delay=200_000)
    now = store.read(lambda tx: tx.now)
    for body in (b"\xff" * 100, msgspec.msgpack.encode(Scheduled(2**63)), b"{}"):
        assert poke(harness.paths.wake, body)
    assert poke(harness.paths.wake, msgspec.msgpack.encode(Scheduled(now + 200_000)))
    harness.until(lambda: pool.claims, within=10)
    assert [key[0] for key in pool.claims] == [job]


@pytest.mark.slow
def test_an_unannounced_row_is_found_by_the_poll(make_harness: MakeHarness, store: Store) -> None:
    """Without a wake-up the poll finds it."""
    harness, pool = idle(make_harness, 0.1, "h", "g", "f")
    insert_jobs(store, "f")
    harness.until(lambda: pool.claims, within=10)


@pytest.mark.slow
def test_due_rows_become_new_in_time(make_harness: MakeHarness, store: Store) -> None:
    """A scheduled row is claimed when it is due, although the poll is long."""
    (job,) = insert_jobs(store, "h", 1, delay=3_000_000)  # there at the first look
    harness = make_harness(poll=60)
    harness.start()
    pool = harness.pool("h").connect()
    pool.demand(1)
    harness.until(lambda: harness.is_up and harness.settled())
    harness.until(lambda: pool.claims, within=30)
    claim = pool.claims[job, 1]
    assert 0 <= claim.claimed_at - claim.run_at < 500_000


def test_cancel_requests_reach_the_pool(make_harness: MakeHarness, store: Store) -> None:
    """A cancel requested in the store is passed on to the pool that holds the claim."""
    harness = make_harness(poll=0.05)
    (job,) = insert_jobs(store, "h")
    harness.start()
    pool = harness.pool("h").connect()
    pool.demand(1)
    harness.until(lambda: pool.claims)
    assert store.run(lambda tx: job_control.cancel(tx, job)) == "asked"
    harness.until(lambda: (job, 1) in pool.cancelled)


def test_a_paused_handler_is_released_and_not_claimed(make_harness: MakeHarness, store: Store) -> None:
    """Pools release what waits; claiming starts again when the handler is resumed."""
    harness = make_harness(poll=0.05)
    harness.start()
    pool = harness.pool("h").connect()
    pool.demand(10)
    harness.until(lambda: harness.is_up)
    store.run(lambda tx: handlers.pause(tx, "h", "me", None))
    harness.until(lambda: ("h",) in pool.releases)
    insert_jobs(store, "h")
    poke(harness.paths.wake)
    harness.serve(0.3)
    assert not pool.claims
    store.run(lambda tx: handlers.resume(tx, "h"))
    harness.until(lambda: pool.claims)
