"""Requests on a Galera cluster, where a lock that writes nothing protects nothing."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.store import test_batches
from tests.support import storing
from tests.support.galera import Galera
from workerd import job
from workerd import workflow as wf
from workerd.clock import SECOND
from workerd.config.schedule_config import ScheduleConfig
from workerd.errors import Conflict, StoreAway
from workerd.store import columns, requests, schedule_control, schedules, signals, ticks
from workerd.store.base import Store

pytestmark = pytest.mark.slow

ROUNDS = 50
MAIL = schedules.short_form("mail", ScheduleConfig(cron="* * * * *"))


@pytest.fixture
def two(cluster: Galera, opened: storing.Opening, request: pytest.FixtureRequest) -> list[Store]:
    """A migrated store through each of two cluster nodes."""
    urls = cluster.urls(request.node.name[-40:])
    stores = [opened(url) for url in urls]
    stores[0].migrate()
    return stores


def settled(work: storing.Callable[[], None]) -> None:
    """Retry while certification fails; a retried transaction takes effect once."""
    while True:
        try:
            work()
            return
        except StoreAway:
            continue


def test_two_cluster_nodes_close_the_last_jobs_of_a_step_at_once(cluster: Galera, two: list[Store]) -> None:
    """The next step starts exactly once in all 50 requests, and all of them end."""
    steps = storing.workflow("w", "a", "b", "c<a,b")
    made = [storing.submit(two[0], steps) for _ in range(ROUNDS)]
    halves = [storing.claims(two[0], "a"), storing.claims(two[0], "b")]
    meet = threading.Barrier(2)

    def closing(by: Store, claims: list[job.Claim]) -> None:
        for claim in sorted(claims, key=lambda c: c.request_id or b""):
            meet.wait(60)
            settled(lambda claim=claim: storing.close(by, [storing.outcome(claim)]))

    threads = [threading.Thread(target=closing, args=pair) for pair in zip(two, halves, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cluster.catch_up()
    assert [storing.states(two[0], request_id)[1].get("c") for request_id in made] == ["new"] * ROUNDS
    storing.finish(two[0], "c")
    assert {storing.request(two[0], request_id)[0].status for request_id in made} == {"completed"}


def test_two_cluster_nodes_fire_a_tick_once(cluster: Galera, two: list[Store]) -> None:
    """One job for each tick, whichever node was faster."""
    two[0].run(lambda tx: schedule_control.upsert(tx, {"mail": ScheduleConfig(cron="* * * * *")}))
    storing.sql(two[0], "UPDATE workerd_schedules SET last_tick = '2026-01-01 00:00:00'")
    begin = columns.time(b"2026-01-01 00:00:00")
    meet = threading.Barrier(2)

    def node(by: Store) -> None:
        for n in range(1, ROUNDS + 1):
            meet.wait(60)
            settled(lambda n=n: by.run(lambda tx: ticks.tick(tx, MAIL, begin + n * SECOND)))

    threads = [threading.Thread(target=node, args=(store,)) for store in two]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cluster.catch_up()
    assert storing.value(two[0], "SELECT COUNT(*) FROM workerd_jobs") == ROUNDS
    assert storing.value(two[0], "SELECT COUNT(DISTINCT run_at) FROM workerd_jobs") == ROUNDS


def test_two_cluster_nodes_pick_up_each_request_once(cluster: Galera, two: list[Store]) -> None:
    """First jobs are inserted once, and a recurring workflow has one run."""
    eager = storing.workflow("eager", "a", schedule=ScheduleConfig(cooler=3600.0))
    steps = storing.workflow("w", "b")
    two[0].run(lambda tx: schedule_control.upsert(tx, {"eager": eager.schedule}))
    meet = threading.Barrier(2)

    def node(by: Store) -> None:
        for _ in range(ROUNDS):
            meet.wait(60)
            settled(lambda: by.run(lambda tx: requests.submit(tx, "w", b"{}")))
            settled(lambda: by.run(lambda tx: requests.pickup(tx, {"w": steps}, 10)))
            settled(lambda: by.run(lambda tx: requests.start_recurring(tx, eager)))

    threads = [threading.Thread(target=node, args=(store,)) for store in two]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cluster.catch_up()
    settled(lambda: two[0].run(lambda tx: requests.pickup(tx, {"w": steps}, 1000)))
    count = "SELECT COUNT(*) FROM workerd_jobs WHERE handler = %s"
    asked = storing.value(two[0], "SELECT COUNT(*) FROM workerd_requests WHERE workflow = 'w'")
    assert storing.value(two[0], count, "b") == asked >= 2 * ROUNDS
    assert storing.value(two[0], count, "a") == storing.value(two[0], count, "eager") == 1


def test_two_cluster_nodes_end_jobs_of_a_large_graph_at_once(cluster: Galera, two: list[Store]) -> None:
    """What needs both begins once in each of the graphs, whose needs are rows, and each graph ends."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(wf, "MAX_INLINE_JOBS", 0)
        jobs = [
            {"name": "a", "handler": "h"},
            {"name": "b", "handler": "h"},
            {"name": "c", "handler": "after", "needs": ["a", "b"]},
        ]
        made = [test_batches.submit(two[0], jobs=jobs) for _ in range(ROUNDS)]
    test_batches.work(two[0])
    claims = storing.claims(two[0], "h", 2 * ROUNDS)
    by_request = defaultdict[bytes, list[job.Claim]](list)
    for claim in claims:
        by_request[claim.request_id or b""].append(claim)
    at_once(two, [by_request[request_id] for request_id in made], lambda by, claim: close_one(by, claim))
    cluster.catch_up()
    storing.finish(two[1], "after")
    cluster.catch_up()
    assert {test_batches.progress(two[0], request_id) for request_id in made} == {("completed", 3, 0, 3)}


def test_two_cluster_nodes_give_a_signal_at_once(cluster: Galera, two: list[Store]) -> None:
    """The first one counts, the other is told so."""
    jobs = [{"name": "go", "signal": "go"}, {"name": "after", "handler": "after", "needs": ["go"]}]
    made = [test_batches.submit(two[0], jobs=jobs) for _ in range(ROUNDS)]
    test_batches.work(two[0])
    refused: list[bytes] = []

    def give(by: Store, request_id: bytes) -> None:
        payload = b'"%d"' % two.index(by)
        try:
            settled(lambda: by.run(lambda tx: signals.deliver(tx, request_id, "go", payload, "me", {})))
        except Conflict:
            refused.append(request_id)

    at_once(two, [[request_id, request_id] for request_id in made], give)
    cluster.catch_up()
    assert sorted(refused) == sorted(made)
    storing.finish(two[1], "after")
    cluster.catch_up()
    assert {test_batches.progress(two[0], request_id)[0] for request_id in made} == {"completed"}


def close_one(by: Store, claim: job.Claim) -> None:
    settled(lambda: storing.close(by, [storing.outcome(claim)]))


def at_once(two: list[Store], pairs: Sequence[Sequence[Any]], act: Callable[[Store, Any], None]) -> None:
    """For each pair both stores act at the same time, each on its half."""
    meet = threading.Barrier(2)

    def acting(half: int) -> None:
        for pair in pairs:
            meet.wait(60)
            act(two[half], pair[half])

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(acting, half) for half in (0, 1)]:
            done.result()
