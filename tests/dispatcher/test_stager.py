"""The stager: wake-ups, polls, due rows, cancels and pauses."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec
import pytest

from tests.support.dispatching import DispatcherHarness, FakePool, MakeHarness, insert_jobs
from workerd.messages import Scheduled
from workerd.runtime.sockets import poke
from workerd.runtime.wake_ups import Waker, new_rows
from workerd.store import handlers, job_control, polls
from workerd.store.base import Store, Tx
from workerd.store.polls import PollResult


def idle(make_harness: MakeHarness, poll: float, *handlers: str) -> tuple[DispatcherHarness, FakePool]:
    """A dispatcher that has looked for jobs and found none, and a pool with room for many."""
    harness = make_harness(poll=poll)
    harness.start()
    pool = harness.pool(*handlers, name="p").connect()
    pool.demand(50)
    harness.until(lambda: harness.is_up and harness.settled())
    harness.serve(0.2)
    return harness, pool


def test_a_wake_up_is_served_before_the_next_poll(make_harness: MakeHarness, store: Store) -> None:
    """An announced row reaches the pool long before the next poll, a minute away."""
    harness, pool = idle(make_harness, 60.0, "h")
    insert_jobs(store, "h")
    assert poke(harness.paths.wake)
    harness.until(lambda: pool.claims, within=10)


def test_a_wake_up_that_names_handlers_is_for_those_alone(
    make_harness: MakeHarness, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are claimed without looking first which of many have rows; one that names none is for all."""
    peek, peeks = polls.peek, tmp_path / "peeks"

    def noted(tx: Tx, names: list[str]) -> PollResult:
        with peeks.open("a") as file:  # by the dispatcher's process
            print(*names, file=file)
        return peek(tx, names)

    monkeypatch.setattr(polls, "peek", noted)
    harness, pool = idle(make_harness, 60.0, "f", "g", "h")
    insert_jobs(store, "f")
    (job,) = insert_jobs(store, "h")
    assert poke(harness.paths.wake, new_rows(["h", "elsewhere"]))
    harness.until(lambda: pool.claims, within=10)
    harness.serve(0.2)
    assert [key[0] for key in pool.claims] == [job]
    assert not peeks.exists()
    assert poke(harness.paths.wake)
    harness.until(lambda: len(pool.claims) == 2, within=10)
    assert peeks.read_text() == "f g h\n"


def test_a_wake_up_that_found_no_room_is_served_too(make_harness: MakeHarness, store: Store) -> None:
    """While the dispatcher does not read, the kernel keeps few of them."""
    harness, pool = idle(make_harness, 60.0, "f", "g", "h")
    os.kill(harness.dispatcher.pid, signal.SIGSTOP)
    insert_jobs(store, "f")
    (job,) = insert_jobs(store, "h")
    waker = Waker(harness.paths.wake)
    for _ in range(1000):
        waker.wake(new_rows(["f"]))
    waker.wake(new_rows(["h"]))
    os.kill(harness.dispatcher.pid, signal.SIGCONT)
    harness.until(lambda: any(key[0] == job for key in pool.claims), within=10)


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


def test_an_unannounced_row_is_found_by_the_poll(make_harness: MakeHarness, store: Store) -> None:
    """Without a wake-up the poll finds it."""
    harness, pool = idle(make_harness, 0.1, "h", "g", "f")
    insert_jobs(store, "f")
    harness.until(lambda: pool.claims, within=10)


def test_due_rows_become_new_in_time(make_harness: MakeHarness, store: Store) -> None:
    """A scheduled row is claimed when it is due, although the poll is long."""
    harness = make_harness(poll=0.5)
    (job,) = insert_jobs(store, "h", 1, delay=1_000_000)
    harness.start()
    pool = harness.pool("h").connect()
    pool.demand(1)
    harness.until(lambda: pool.claims)
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
