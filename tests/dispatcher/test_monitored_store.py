"""The dispatcher's record of store errors and availability."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.servers import DatabaseServer
from tests.support.storing import enqueue
from workerd.clock import SECOND
from workerd.dispatcher import monitored_store
from workerd.dispatcher.monitored_store import MonitoredStore
from workerd.errors import StoreAway, StoreBusy
from workerd.store.base import Store, Tx

Opened = Callable[..., Store]


def one(tx: Tx) -> Any:
    return tx.one("SELECT 1")


def test_busy_is_not_unavailable(mysql: Store, mysql_url: str, opened: Opened) -> None:
    """A transaction that lost its locks leaves the store available, since when it was."""
    made = enqueue(mysql, "h")
    store = MonitoredStore(opened(mysql_url), max_gap_s=60.0)
    assert store.read(one) == (1,)
    since = store.availability.since

    def holding(tx: Any) -> None:
        tx.execute("UPDATE workerd_jobs SET priority = 1 WHERE id = %s", (made,))
        with pytest.raises(StoreBusy):
            store.run(lambda tx: tx.execute("UPDATE workerd_jobs SET priority = 2 WHERE id = %s", (made,)))

    mysql.run(holding)
    assert store.availability.available
    assert store.availability.since == since


def test_a_killed_server_is_unavailable_not_busy(own_server: DatabaseServer, opened: Opened) -> None:
    """The error is kept, and the time for which the store has answered starts over."""
    store = MonitoredStore(opened(own_server.url(own_server.new_database())), max_gap_s=60.0)
    store.read(one)
    time.sleep(0.01)
    store.read(one)
    assert store.answered_for_s >= 0.01
    own_server.kill9()
    with pytest.raises(StoreAway) as caught:
        store.read(one)
    assert not isinstance(caught.value, StoreBusy)
    assert store.availability.error is caught.value
    assert store.answered_for_s == 0.0


def test_a_gap_between_answers_starts_the_time_over(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 8: a process that was stopped must not rescue a node whose lease ended meanwhile."""
    now = 1000.0
    monkeypatch.setattr(monitored_store, "time", SimpleNamespace(monotonic=lambda: now))
    monitored = MonitoredStore(store, max_gap_s=5.0)
    monitored.read(one)
    now += 5
    monitored.read(one)
    assert monitored.answered_for_s == 5.0
    now += 6
    assert monitored.answered_for_s == 0.0
    monitored.read(one)
    assert monitored.answered_for_s == 0.0


def test_the_clock_of_the_store_is_known_without_asking(store: Store) -> None:
    """From one reading of it and the monotonic clock."""
    monitored = MonitoredStore(store, max_gap_s=1.0)
    assert not monitored.knows_time
    moment = time.monotonic_ns()
    assert monitored.set_clock(10 * SECOND, moment, moment) == 0
    assert monitored.time_at(moment) == 10 * SECOND
    assert 10 * SECOND <= monitored.now() < 11 * SECOND
    assert 4.0 < monitored.seconds_until(15 * SECOND) <= 5.0
    assert monitored.seconds_until(9 * SECOND) == 0.0


def test_the_clock_is_known_as_well_as_by_the_quickest_answer(store: Store) -> None:
    """A slow one tells less than what was known; one of a claim may tell more, but not that it was set."""
    monitored = MonitoredStore(store, max_gap_s=1.0)
    ms = 1000
    monitored.set_clock(SECOND, 0, 50 * ms * 1000)
    assert monitored.time_at(0) == SECOND - 50 * ms
    monitored.note_time(2 * SECOND, (1000 + 1) * ms * 1000)
    assert monitored.time_at(0) == SECOND - ms
    monitored.note_time(3 * SECOND, (2000 + 20) * ms * 1000)
    assert monitored.time_at(0) == SECOND - ms
    assert monitored.set_clock(4 * SECOND, 2990 * ms * 1000, 3090 * ms * 1000) == 0
    assert monitored.time_at(0) == SECOND - ms
    monitored.note_time(100 * SECOND, 4000 * ms * 1000)
    assert monitored.time_at(0) == SECOND - ms
    assert monitored.set_clock(101 * SECOND, 5000 * ms * 1000, 5000 * ms * 1000) == 95 * SECOND + ms


def test_a_clock_that_was_set_is_noticed(store: Store) -> None:
    """Forward and back; neither a slow answer nor the time between two readings counts as a step."""
    monitored = MonitoredStore(store, max_gap_s=1.0)
    second_ns = 1_000_000_000
    assert monitored.set_clock(1000 * SECOND, 0, 0) == 0
    assert monitored.set_clock(1010 * SECOND, 10 * second_ns, 10 * second_ns) == 0
    assert monitored.set_clock(1020 * SECOND, 12 * second_ns, 25 * second_ns) == 0, "the answer took 13 s"
    assert monitored.set_clock(1630 * SECOND, 30 * second_ns, 30 * second_ns) == 600 * SECOND
    assert monitored.set_clock(1040 * SECOND, 40 * second_ns, 40 * second_ns) == -600 * SECOND
    assert monitored.set_clock(1050 * SECOND, 50 * second_ns, 50 * second_ns) == 0
    assert monitored.time_at(0) == 1000 * SECOND
    assert monitored.latest_time_at(0) == 1600 * SECOND, "a death counts as late as it can have been"
