"""The wake-up socket: what is claimed for which datagram."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec
import pytest

from tests.support.dispatching import DispatcherHarness, FakePool, MakeHarness, idle, insert_jobs
from workerd.clock import SECOND
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.limit_config import LimitConfig
from workerd.dispatcher import claimer
from workerd.messages import Inserting
from workerd.rate_limit import Rate
from workerd.runtime.sockets import poke
from workerd.runtime.wake_ups import Waker, new_row, new_rows
from workerd.store import polls
from workerd.store.base import Store, Tx
from workerd.store.polls import PollResult

INSERTING = msgspec.msgpack.encode(Inserting(("h",)))


def test_a_wake_up_is_served_before_the_next_poll(make_harness: MakeHarness, store: Store) -> None:
    """An announced row reaches the pool long before the next poll, a minute away."""
    harness, pool = idle(make_harness, 60.0, "h")
    insert_jobs(store, "h")
    assert poke(harness.paths.wake)
    harness.until(lambda: pool.claims, within=10)


@pytest.mark.slow
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


def test_a_wake_up_that_names_none_does_not_wait_for_the_rate_of_another(
    make_harness: MakeHarness, store: Store
) -> None:
    """Of handlers without a limit rows are looked for at once."""
    plain = [HandlerConfig(name=name, call="x:y", pool="p") for name in ("f", "g", "h")]
    rated = HandlerConfig(name="rated", call="x:y", pool="p", limit="l", rated=True)
    harness = make_harness(
        poll=60.0,
        pools={"p": PoolConfig(name="p", handlers=(*plain, rated))},
        limits={"l": LimitConfig(rate=Rate(1, 3600 * SECOND, 1))},
    )
    insert_jobs(store, "rated", 2)
    harness.start()
    pool = harness.pool("f", "g", "h", "rated", name="p").connect()
    pool.demand(50)
    harness.until(lambda: harness.settled() and pool.claims)
    harness.serve(0.2)
    insert_jobs(store, "g")
    assert poke(harness.paths.wake)
    harness.until(lambda: len(pool.claims) == 2, within=10)


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


@pytest.mark.slow
def test_a_row_is_claimed_before_its_sender_knows_of_it(make_harness: MakeHarness, store: Store) -> None:
    """Who inserts says so before; afterwards it names the job, and a job that was claimed is no news."""
    harness, pool = idle(make_harness, 60.0, "h")
    (first,) = insert_jobs(store, "h")
    assert poke(harness.paths.wake, INSERTING)
    harness.until(lambda: pool.claims, within=10)
    (second,) = insert_jobs(store, "h")
    assert poke(harness.paths.wake, new_row("h", first))
    harness.serve(0.2)
    assert [key[0] for key in pool.claims] == [first]
    assert poke(harness.paths.wake, new_row("h", second))
    harness.until(lambda: len(pool.claims) == 2, within=10)


def assert_not_looked_for_early(harness: DispatcherHarness, pool: FakePool) -> None:
    """A job of h is claimed for the wake-up that comes when it is inserted, not for the one before."""
    insert_jobs(harness.store, "h")
    assert poke(harness.paths.wake, INSERTING)
    harness.serve(0.2)
    assert not pool.claims
    assert poke(harness.paths.wake, new_rows(["h"]))
    harness.until(lambda: pool.claims, within=10)


@pytest.mark.slow
def test_after_a_claim_nothing_is_looked_for_early(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node with work finds new rows soon in any case."""
    monkeypatch.setattr(claimer, "RESTED_S", 600.0)
    harness, pool = idle(make_harness, 60.0, "h")
    assert_not_looked_for_early(harness, pool)


@pytest.mark.slow
def test_newcomers_of_a_fair_handler_are_not_looked_for_early(make_harness: MakeHarness) -> None:
    """A look that finds none puts off the next one."""
    fair = HandlerConfig(name="h", call="x:y", pool="p", fair=True)
    harness, pool = idle(make_harness, 60.0, "h", pools={"p": PoolConfig(name="p", handlers=(fair,))})
    assert_not_looked_for_early(harness, pool)
