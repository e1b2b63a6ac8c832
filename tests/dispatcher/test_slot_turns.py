"""Slots of a limit that nodes share by different handlers: asked for, kept, taken, and left in the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import storing
from tests.support.dispatching import insert_jobs, node_config
from tests.support.rows import Rows
from workerd import clock
from workerd.clock import SECOND
from workerd.config.handler_config import HandlerConfig, PoolConfig
from workerd.config.limit_config import LimitConfig
from workerd.dispatcher import slot_turns
from workerd.dispatcher.limited_handlers import LimitedHandlers
from workerd.ingester import writer
from workerd.job import Claim
from workerd.store import limits
from workerd.store.base import Store, Tx
from workerd.store.claims import MAX_BATCH_BYTES, NodeIdent
from workerd.store.limited_claims import LimitedBatch
from workerd.store.nodes import NodeInfo

COUNTED = [LimitConfig(concurrency=1), LimitConfig(group_concurrency=1)]


class Node:
    """The claims of a node that has these handlers, all of one limit."""

    def __init__(self, store: Store, folder: Path, limit: LimitConfig, *handlers: str) -> None:
        self._store = store
        self._ident = NodeIdent("".join(handlers).encode().ljust(16), "-".join(handlers))
        configured = tuple(HandlerConfig(name=name, call="x:y", pool="p", limit="l") for name in handlers)
        pools = {"p": PoolConfig(name="p", handlers=configured)}
        self._limited = LimitedHandlers(
            node_config(folder, "sqlite:///none", pools=pools, limits={"l": limit})
        )
        self.info = NodeInfo(limits={"l": limit}, limit_of=dict.fromkeys(handlers, "l"))
        self.batch = LimitedBatch(storing.store_claims.ClaimBatch([], [], None, 0))

    def meet(self, *others: Node) -> None:
        """Learn what live nodes have."""
        infos = [node.info for node in (self, *others)]
        self._limited.agree({str(number): info for number, info in enumerate(infos)})

    def claim(self, handler: str, wanted: int = 5) -> list[Claim]:
        def work(tx: Tx) -> LimitedBatch:
            locked = limits.lock(tx, ["l"])
            return self._limited.claim(tx, handler, locked, wanted, self._ident, None, MAX_BATCH_BYTES)

        self.batch = self._store.run(work)
        self._limited.learn(handler, self.batch)
        return self.batch.batch.claims

    def end(self, claim: Claim) -> None:
        outcome = storing.outcome(claim)
        self._store.run(lambda tx: writer.close(tx, [outcome], self._ident.id))


@pytest.fixture
def nodes(store: Store, tmp_path: Path, limit: LimitConfig) -> tuple[Node, Node]:
    """Two that share a limit by different handlers, a flood of one and a single job of the other."""
    first, second = Node(store, tmp_path, limit, "flood"), Node(store, tmp_path, limit, "single")
    first.meet(second)
    second.meet(first)
    insert_jobs(store, "flood", 9)
    insert_jobs(store, "single", 1)
    return first, second


def kept(rows: Rows) -> list[str]:
    found = rows.sql("SELECT next_handler FROM workerd_rates WHERE next_until IS NOT NULL")
    return [row["next_handler"] for row in found]


@pytest.mark.parametrize("limit", COUNTED)
def test_the_next_slot_is_kept_for_who_got_none(nodes: tuple[Node, Node], store_url: str) -> None:
    """Until it has been taken; then whoever is first has the next one."""
    flooding, other = nodes
    rows = Rows(store_url)
    (running,) = flooding.claim("flood")
    assert other.claim("single") == []
    assert kept(rows) == ["single"]
    flooding.end(running)
    assert flooding.claim("flood") == []
    (single,) = other.claim("single")
    assert kept(rows) == []
    other.end(single)
    (running,) = flooding.claim("flood")
    flooding.end(running)
    assert rows.sql("SELECT * FROM workerd_slots") == []


@pytest.mark.parametrize("limit", COUNTED)
def test_both_try_again_soon(nodes: tuple[Node, Node], store: Store) -> None:
    """Since nobody tells a node what another one has freed."""
    flooding, other = nodes
    (running,) = flooding.claim("flood")
    other.claim("single")
    assert other.batch.retry_at is not None
    flooding.end(running)
    flooding.claim("flood")
    assert flooding.batch.retry_at is not None
    assert flooding.batch.retry_at <= store.read(lambda tx: tx.now) + 10 * SECOND


@pytest.mark.parametrize("limit", COUNTED)
def test_who_had_a_slot_just_now_does_not_ask(
    nodes: tuple[Node, Node], store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn lasts a moment, so that slots change nodes seldom; then it asks as any other."""
    flooding, _ = nodes
    monkeypatch.setattr(slot_turns, "TURN_S", 3600.0)
    (running,) = flooding.claim("flood")
    flooding.claim("flood")
    assert kept(Rows(store_url)) == []
    monkeypatch.setattr(slot_turns, "TURN_S", 0.0)
    flooding.claim("flood")
    assert kept(Rows(store_url)) == ["flood"]
    flooding.end(running)


@pytest.mark.parametrize("limit", COUNTED)
@pytest.mark.parametrize("until_s", [-1, 3600])
def test_a_slot_is_not_kept_for_ever(
    nodes: tuple[Node, Node], store: Store, store_url: str, until_s: int
) -> None:
    """Who asked may have died; and the clock may have been set back since."""
    flooding, other = nodes
    (running,) = flooding.claim("flood")
    other.claim("single")
    flooding.end(running)
    moment = clock.to_text(store.read(lambda tx: tx.now) + until_s * SECOND)
    Rows(store_url).sql("UPDATE workerd_rates SET next_until = %s WHERE next_until IS NOT NULL", moment)
    (running,) = flooding.claim("flood")
    flooding.end(running)


def test_of_more_slots_one_is_kept(store: Store, store_url: str, tmp_path: Path) -> None:
    """The others go on."""
    limit = LimitConfig(concurrency=3)
    flooding, other = Node(store, tmp_path, limit, "flood"), Node(store, tmp_path, limit, "single")
    flooding.meet(other)
    other.meet(flooding)
    insert_jobs(store, "flood", 9)
    insert_jobs(store, "single", 2)
    running = flooding.claim("flood")
    assert other.claim("single") == []
    for claim in running:
        flooding.end(claim)
    running = flooding.claim("flood")
    assert len(running) == 2
    (single,) = other.claim("single")
    other.end(single)
    for claim in running:
        flooding.end(claim)
    assert Rows(store_url).sql("SELECT * FROM workerd_slots") == []


@pytest.mark.parametrize("theirs", [("flood", "single"), ("flood",)])
@pytest.mark.parametrize("limit", COUNTED)
def test_nodes_with_the_same_handlers_ask_for_nothing(
    store: Store, store_url: str, tmp_path: Path, limit: LimitConfig, theirs: tuple[str, ...]
) -> None:
    """Whoever is first may run what waits: a slot that is kept would only be left unused."""
    one, other = Node(store, tmp_path, limit, "flood"), Node(store, tmp_path, limit, *theirs)
    one.meet(other)
    insert_jobs(store, "flood", 9)
    (running,) = other.claim("flood")
    assert one.claim("flood") == []
    assert one.batch.retry_at is None
    assert kept(Rows(store_url)) == []
    other.end(running)


def test_a_full_group_asks_while_others_have_room(store: Store, store_url: str, tmp_path: Path) -> None:
    """For itself; jobs of other groups start beside it."""
    limit = LimitConfig(group_concurrency=1)
    flooding, other = Node(store, tmp_path, limit, "flood"), Node(store, tmp_path, limit, "single")
    flooding.meet(other)
    other.meet(flooding)
    rows = Rows(store_url)
    insert_jobs(store, "flood", 3, group_key="a")
    (running,) = flooding.claim("flood")
    insert_jobs(store, "single", 1, group_key="a")
    insert_jobs(store, "single", 1, group_key="b")
    (beside,) = other.claim("single")
    assert beside.limited is not None
    assert beside.limited.group == "b"
    asked = "SELECT group_key FROM workerd_rates WHERE next_handler = 'single'"
    assert [row["group_key"] for row in rows.sql(asked)] == ["a"]
    flooding.end(running)
    assert flooding.claim("flood") == []
    (single,) = other.claim("single")
    for claim in (beside, single):
        other.end(claim)
    (running,) = flooding.claim("flood")
    flooding.end(running)
    assert rows.sql("SELECT * FROM workerd_slots") == []
