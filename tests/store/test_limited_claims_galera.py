"""Limits on a Galera cluster, where a lock of one server is not seen by the others."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from typing import NamedTuple

import pytest

from tests.support import storing
from tests.support.galera import Galera
from workerd.clock import SECOND
from workerd.config.limit_config import LimitConfig
from workerd.errors import StoreAway
from workerd.ingester import writer
from workerd.job import AttemptRef, Claim, Status
from workerd.outcome import Outcome, Reason
from workerd.rate_limit import Rate
from workerd.store import limited_claims, limits, slots
from workerd.store.base import Store, Tx
from workerd.store.claim_window import LimitedHandler
from workerd.store.claims import NodeIdent
from workerd.store.limit_room import LockedLimit
from workerd.store.limited_batch import LimitedBatch
from workerd.store.queue_heads import QueueHeads
from workerd.store.slot_numbers import NO_RANGE

pytestmark = pytest.mark.slow

LIMIT = LimitConfig(concurrency=3, group_concurrency=1, rate=Rate(100, SECOND, 100), burst=20)
JOBS = 200


@pytest.fixture
def two(cluster: Galera, opened: storing.Opening) -> list[Store]:
    """A migrated store through each of two cluster nodes."""
    stores = [opened(url) for url in cluster.urls("limits")]
    stores[0].migrate()
    return stores


class Running:
    """What runs as its claimers know it: from the commit of a claim to before that of its end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: dict[AttemptRef, str] = {}
        self.most = 0
        self.over = 0
        self.starts: list[int] = []
        self.ended = 0

    def add(self, claims: list[Claim]) -> None:
        with self._lock:
            for claim in claims:
                assert claim.limited is not None
                self._groups[claim.ref] = claim.limited.group
                self.starts.append(claim.claimed_at)
            self.most = max(self.most, len(self._groups))
            self.over += any(count > 1 for count in Counter(self._groups.values()).values())

    def remove(self, claim: Claim) -> None:
        with self._lock:
            del self._groups[claim.ref]
            self.ended += 1


class Shape(NamedTuple):
    """What a claimer does with a limit: it wants so many at a time, and holds so many while it wants more."""

    limit: LimitConfig
    wanted: int
    held: int


def work(store: Store, node: NodeIdent, running: Running, shape: Shape) -> None:
    """Claim and end until all jobs have ended."""
    handler = LimitedHandler("h", "l", None, False)
    free_range = NO_RANGE
    held: list[Claim] = []

    def claim(tx: Tx) -> LimitedBatch:
        locked = limits.lock(tx, ["l"])
        if "l" not in locked:
            return LimitedBatch.empty(None, busy=True)
        limit, heads = LockedLimit(shape.limit, locked["l"], free_range), QueueHeads({}, True, None)
        request = limited_claims.ClaimRequest(shape.wanted, node)
        return limited_claims.claim(tx, handler, request, limit, heads, None)

    def end(one: Claim) -> None:
        running.remove(one)
        outcome = Outcome(
            id=one.id, attempt=1, claimed_at=one.claimed_at, handler="h", status=Status.COMPLETED,
            reason=Reason.OK, limited=one.limited,
        )  # fmt: skip
        while True:
            try:
                store.run(lambda tx: writer.close(tx, [outcome], node.id))
                break
            except StoreAway:
                continue

    while running.ended < JOBS:
        try:
            found = store.run(claim)
        except StoreAway:  # it lost against the other server too often
            continue
        free_range = free_range if found.row is None else found.free_range
        running.add(found.batch.claims)
        held += found.batch.claims
        while len(held) > (shape.held if found.batch.claims else 0):
            end(held.pop(0))


def both(stores: list[Store], shape: Shape) -> Running:
    """Run all jobs through both servers at a time."""
    marks = ", ".join(["(%s, 'h', %s)"] * JOBS)
    params = [value for n in range(JOBS) for value in (uuid.uuid4().bytes, f"g{n % 5}")]
    stores[0].run(
        lambda tx: tx.execute(f"INSERT INTO workerd_jobs (id, handler, group_key) VALUES {marks}", params)
    )
    running = Running()
    nodes = [NodeIdent(bytes([n]) * 16, f"n{n}") for n in (1, 2)]
    threads = [
        threading.Thread(target=work, args=(store, node, running, shape))
        for store, node in zip(stores, nodes, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return running


def test_two_servers_give_out_no_slot_and_no_start_twice(cluster: Galera, two: list[Store]) -> None:
    """Of the limit, of a group, and in no window of the rate."""
    running = both(two, Shape(LIMIT, 5, 0))
    assert running.most <= 3
    assert running.over == 0
    starts = sorted(running.starts)
    for first in range(JOBS):
        for last in range(first, JOBS):
            window = starts[last] - starts[first]
            assert last - first + 1 <= 100 * window / SECOND + 20 + 1e-6
    cluster.catch_up()
    assert two[0].read(slots.holders) == []


def test_two_servers_that_remember_free_numbers_give_out_none_twice(
    cluster: Galera, two: list[Store]
) -> None:
    """Neither sees what the other is giving out, and both want to hold more than the limit allows."""
    running = both(two, Shape(LimitConfig(concurrency=8), 2, 6))
    assert running.most <= 8
    cluster.catch_up()
    assert two[0].read(slots.holders) == []
