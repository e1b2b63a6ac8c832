"""The dispatcher's process: drain, orphan, and the limits that it derives."""

from __future__ import annotations

import os
import socket

import pytest

from tests.support.dispatching import EVERY_SECOND, FLOW, MakeHarness, insert_jobs, job_rows, pool_of
from workerd.config.model import PickupConfig
from workerd.config.schedule_config import ScheduleConfig
from workerd.dispatcher.dispatcher import store_timeout
from workerd.messages import Drain
from workerd.runtime.sockets import poke
from workerd.store import nodes, requests
from workerd.store.base import Store


def test_draining_keeps_the_lease_and_claims_nothing(make_harness: MakeHarness, store: Store) -> None:
    """From Drain to Stop the lease is renewed, and nothing is claimed."""
    harness = make_harness(lease=0.6, poll=0.05)
    harness.start()
    pool = harness.pool("h").connect()
    pool.demand(5)
    harness.until(lambda: harness.is_up)
    harness.send(Drain(seconds=30))
    harness.until(lambda: harness.beat.state == "draining")
    insert_jobs(store, "h")
    poke(harness.paths.wake)
    (before,) = store.read(nodes.list_)
    harness.until(lambda: store.read(nodes.list_)[0].lease_until > before.lease_until + 500_000)
    assert not pool.claims


def test_an_orphan_ends(make_harness: MakeHarness) -> None:
    """Without a supervisor it cannot know which pools are alive."""
    harness = make_harness()
    child = harness.start()
    harness.until(lambda: harness.is_up)
    assert harness.supervisor is not None
    harness.supervisor.close()
    harness.until(lambda: child.reap() is not None)
    assert child.status == 71


@pytest.mark.parametrize(
    ("watchdog", "lease", "expected"),
    [(10.0, 30.0, 4.0), (60.0, 30.0, 5.0), (60.0, 8.0, 2.0), (1.0, 30.0, 0.4)],
)
def test_no_statement_outlasts_the_watchdog_or_the_lease(
    watchdog: float, lease: float, expected: float
) -> None:
    """Connecting and one statement together stay below both."""
    assert store_timeout(watchdog, lease) == pytest.approx(expected)


def test_a_node_without_pickup_starts_nothing(make_harness: MakeHarness, store: Store) -> None:
    """`pickup.enabled = false`: no tick, no request, no interval."""
    harness = make_harness(
        poll=0.05,
        pools=pool_of("beat", ScheduleConfig(cron=EVERY_SECOND)),
        workflows={"flow": FLOW},
        pickup=PickupConfig(enabled=False),
    )
    store.run(lambda tx: requests.submit(tx, "flow", b"{}"))
    harness.start()
    harness.until(lambda: harness.is_up)
    harness.serve(1.5)
    assert not job_rows(store, "beat")
    assert not job_rows(store, "h")


def test_wake_ups_leave_a_node_without_pickup_asleep(make_harness: MakeHarness) -> None:
    """They stay in the socket, whose queue is full then."""
    harness = make_harness(poll=0.05, pickup=PickupConfig(enabled=False))
    harness.start()
    harness.until(lambda: harness.is_up)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as client:

        def is_full() -> bool:
            try:
                client.sendto(b"", os.fspath(harness.paths.wake))
            except BlockingIOError:
                return True
            return False

        harness.until(is_full)
        before = harness.beat
        harness.until(lambda: harness.beat is not before)
        assert is_full()
