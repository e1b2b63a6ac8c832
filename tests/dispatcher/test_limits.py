"""A dispatcher whose handlers have limits: what it claims, when it tries again, what other nodes change."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from tests.support import storing
from tests.support.dispatching import DispatcherHarness, FakePool, MakeHarness, insert_jobs
from tests.support.rows import Rows
from workerd.clock import SECOND
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.limit_config import LimitConfig
from workerd.ingester import writer
from workerd.job import Claim, new_id
from workerd.messages import Freed
from workerd.outcome import Hold
from workerd.rate_limit import Rate
from workerd.runtime.sockets import poke
from workerd.store import limits, nodes, slot_numbers, slots
from workerd.store.base import Store
from workerd.store.claims import NodeIdent
from workerd.store.nodes import NodeInfo, NodeRecord


def start(
    make_harness: MakeHarness, limit: LimitConfig, *, poll: float = 0.5
) -> tuple[DispatcherHarness, FakePool]:
    handlers = tuple(
        HandlerConfig(name=name, call="x:y", pool="p", limit="l", rated=limit.rated) for name in ("a", "b")
    )
    pools = {"p": PoolConfig(name="p", handlers=handlers)}
    harness = make_harness(poll=poll, pools=pools, limits={"l": limit})
    harness.start()
    pool = harness.pool("a", "b", name="p").connect()
    return harness, pool


def end(harness: DispatcherHarness, pool: FakePool, claim: Claim, hold: Hold | None = None) -> None:
    """Record the end of a claim, as the ingester does, which then wakes the dispatcher."""
    outcome = storing.outcome(claim, hold=hold)
    batch = harness.store.run(lambda tx: writer.close(tx, [outcome], harness.incarnation))
    del pool.claims[claim.ref]
    poke(harness.paths.wake, msgspec.msgpack.encode(Freed(tuple(batch.freed))))


def test_handlers_share_a_limit(make_harness: MakeHarness, store: Store, store_url: str) -> None:
    """A slot that becomes free is given out at once, whichever handler waits for it."""
    harness, pool = start(make_harness, LimitConfig(concurrency=3), poll=60.0)
    insert_jobs(store, "a", 4)
    insert_jobs(store, "b", 4)
    pool.demand(20)
    harness.until(lambda: len(pool.claims) == 3)
    harness.serve(0.2)
    ended = 0
    while pool.claims:
        assert len(pool.claims) <= 3
        end(harness, pool, next(iter(pool.claims.values())))
        ended += 1
        harness.until(lambda n=ended: len(pool.claims) == min(3, 8 - n))  # type: ignore[misc]
    assert ended == 8
    assert Rows(store_url).sql("SELECT * FROM workerd_slots") == []


def test_slots_of_a_limit_that_is_far_away_are_read_now_and_then(
    make_harness: MakeHarness, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node remembers where some were free, from one handler of a transaction to the next, and after it."""
    read = storing.note_reads_of_all_slots(monkeypatch)
    harness, pool = start(make_harness, LimitConfig(concurrency=slot_numbers.RANGES_BELOW), poll=0.1)
    before = 0
    for turn in range(1, 7):
        insert_jobs(store, "a", 3)
        insert_jobs(store, "b", 3)
        pool.demand(20)
        harness.until(lambda n=turn: len(pool.claims) == 6 * n)  # type: ignore[misc]
        before = before or len(read)
    # Where it was close to the end of what was free, all are read again.
    assert len(read) <= before + 1
    assert len({claim.limited and claim.limited.slot for claim in pool.claims.values()}) == 36


def test_a_rate_is_waited_for_by_a_timer(make_harness: MakeHarness, store: Store) -> None:
    """The next job starts when it fits, although nobody announces anything."""
    limit = LimitConfig(rate=Rate(2, SECOND, 2), burst=1)
    harness, pool = start(make_harness, limit, poll=60.0)
    insert_jobs(store, "a", 4)
    pool.demand(20)
    harness.until(lambda: len(pool.claims) == 4)
    moments = sorted(claim.claimed_at for claim in pool.claims.values())
    assert all(later - earlier >= SECOND // 2 for earlier, later in itertools.pairwise(moments))


def test_what_waits_in_pools_is_given_back_at_a_hold(make_harness: MakeHarness, store: Store) -> None:
    """Within a poll, also on nodes that did not record it."""
    harness, pool = start(make_harness, LimitConfig(concurrency=9), poll=0.1)
    insert_jobs(store, "a", 2)
    pool.demand(20)
    harness.until(lambda: len(pool.claims) == 2)
    first = next(iter(pool.claims.values()))
    end(harness, pool, first, Hold("limit", 3600 * SECOND))
    harness.until(lambda: ("a", "b") in pool.releases)
    insert_jobs(store, "b", 1)
    harness.serve(0.4)
    assert len(pool.claims) == 1


@pytest.mark.parametrize(("scope", "group"), [("limit", None), ("group", "")])
def test_the_end_of_a_hold_by_hand_is_seen_within_a_poll(
    make_harness: MakeHarness, store: Store, scope: str, group: str | None
) -> None:
    """What waits for it is claimed long before the moment until which it was to last."""
    harness, pool = start(make_harness, LimitConfig(concurrency=9), poll=0.1)
    insert_jobs(store, "a", 1)
    pool.demand(20)
    harness.until(lambda: len(pool.claims) == 1)
    end(harness, pool, next(iter(pool.claims.values())), Hold(scope, 3600 * SECOND))
    (job,) = insert_jobs(store, "b", 1)
    harness.until(lambda: ("a", "b") in pool.releases)
    harness.serve(0.4)
    assert not pool.claims
    assert store.run(lambda tx: limits.end_hold(tx, "l", group))
    harness.until(lambda: pool.claims, within=10)
    assert [ref.id for ref in pool.claims] == [job]


@pytest.mark.slow
def test_the_lower_of_two_configurations_holds(
    make_harness: MakeHarness, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    """While a live node has it; the log says so once."""
    other = NodeRecord(
        id=new_id(),
        name="other",
        info=msgspec.json.encode(NodeInfo(limits={"l": LimitConfig(concurrency=1)})),
    )
    store.run(lambda tx: nodes.register(tx, other, 3600))
    harness, pool = start(make_harness, LimitConfig(concurrency=3), poll=0.1)
    harness.until(lambda: harness.is_up and harness.settled())
    logged: list[str] = []

    def differs() -> list[str]:
        logged.extend(capfd.readouterr().err.splitlines())
        return [line for line in logged if "limit.differs" in line]

    harness.until(differs)
    insert_jobs(store, "a", 4)
    pool.demand(20)
    harness.until(lambda: pool.claims)
    harness.serve(0.5)
    assert len(pool.claims) == 1
    store.run(lambda tx: nodes.remove(tx, other.id))
    harness.until(lambda: len(pool.claims) == 3)
    (line,) = differs()
    assert '"nodes":"other"' in line


def test_another_limit_of_a_handler_on_another_node_is_logged(
    make_harness: MakeHarness, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once, with the node."""
    info = NodeInfo(handlers={"a": nodes.HandlerFigures()}, limit_of={"a": "m"})
    other = NodeRecord(id=new_id(), name="other", info=msgspec.json.encode(info))
    store.run(lambda tx: nodes.register(tx, other, 3600))
    harness, _ = start(make_harness, LimitConfig(concurrency=3), poll=0.1)
    logged: list[str] = []

    def is_logged() -> bool:
        logged.extend(capfd.readouterr().err.splitlines())
        return any("handler.limit_differs" in line for line in logged)

    harness.until(is_logged)
    harness.serve(1.2)  # the next time that it asks what others have
    is_logged()
    (line,) = [line for line in logged if "handler.limit_differs" in line]
    assert '"handler":"a","limit":"l","nodes":"other"' in line
    store.run(lambda tx: nodes.remove(tx, other.id))


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit", [LimitConfig(concurrency=3), LimitConfig(group_concurrency=3), LimitConfig(3, 3)]
)
def test_what_ran_before_a_limit_counted_it_counts(
    make_harness: MakeHarness, store: Store, store_url: str, limit: LimitConfig
) -> None:
    """As after a reload that gives a handler a limit: what runs has slots, and frees them when it ends."""
    other = NodeRecord(id=new_id(), name="other", info=msgspec.json.encode(NodeInfo()))
    store.run(lambda tx: nodes.register(tx, other, 3600))
    node = NodeIdent(other.id, other.name)
    insert_jobs(store, "a", 4, group_key="g")
    running = storing.claims(store, "a", node=node)
    harness, pool = start(make_harness, limit, poll=0.1)
    insert_jobs(store, "b", 3, group_key="g")
    pool.demand(20)
    harness.until(lambda: harness.is_up and harness.settled())
    harness.serve(0.5)
    assert not pool.claims, "four run already"
    storing.close(store, [storing.outcome(claim) for claim in running[:2]], node)
    harness.until(lambda: len(pool.claims) == 1)
    harness.serve(0.5)
    assert len(pool.claims) == 1
    storing.close(store, [storing.outcome(claim) for claim in running[2:]], node)
    harness.until(lambda: len(pool.claims) == 3)
    for claim in list(pool.claims.values()):
        end(harness, pool, claim)
    assert Rows(store_url).sql("SELECT * FROM workerd_slots") == []
    store.run(lambda tx: nodes.remove(tx, other.id))


def test_claims_of_a_dead_pool_free_their_slots(
    make_harness: MakeHarness, store: Store, store_url: str
) -> None:
    """By the outcome that settlement sends."""
    harness, pool = start(make_harness, LimitConfig(concurrency=2, group_concurrency=2))
    insert_jobs(store, "a", 2, group_key="g")
    pool.demand(20)
    harness.until(lambda: len(pool.claims) == 2)
    harness.report_death(pool)
    harness.until(lambda: Rows(store_url).sql("SELECT * FROM workerd_slots") == [])


def test_slots_that_a_person_left_behind_are_freed(make_harness: MakeHarness, store: Store) -> None:
    """By deleting the row of a running job."""
    store.run(
        lambda tx: tx.execute(
            "INSERT INTO workerd_slots (limit_name, n, id, attempt) VALUES ('l', 0, %s, 1)", (new_id(),)
        )
    )
    _, pool = start(make_harness, LimitConfig(concurrency=1), poll=0.1)
    insert_jobs(store, "a", 1)
    pool.demand(1)
    pool.harness.until(lambda: pool.claims)
    assert len(store.read(slots.holders)) == 1
